#!/usr/bin/env bash
# RMU on the models without a filter of run.sh (runs/wiki/PRESET/none-seedK): representations of biology are made noise.
# Seeds whose runs/wiki/PRESET/rmu-seedK/model is there are not made again.
#   scripts/wiki/rmu.sh [--preset cpu|paper] [--seeds "0 1 2"] [--dry-run] [options of `sgtm rmu`]
source "$(dirname "$0")/../preset.sh"
fixed_out "runs/wiki/$preset/rmu-seedK, beside the runs that it reads"
by_seed
case $preset in
  cpu) settings=(--layer 2 --alpha 5 --steps 250 --learning-rate 2e-3 --evaluate.every 125 --evaluate.rows 100) ;;
  paper) settings=(--layer 7 --steps 250 --learning-rate 5e-5 --evaluate.every 10 --evaluate.rows 2000 --precision bf16) ;;
esac
for seed in $seeds; do
  [[ -e runs/wiki/$preset/rmu-seed$seed/model ]] || ${run[@]+"${run[@]}"} sgtm rmu "runs/wiki/$preset/none-seed$seed" --out "runs/wiki/$preset/rmu-seed$seed" --seed "$seed" \
    "${settings[@]}" ${options[@]+"${options[@]}"}
done
for retain in retain adjacent; do # the figures of run.sh again, now with RMU
  ${run[@]+"${run[@]}"} sgtm plot tradeoff "runs/wiki/$preset"/*-seed* --retain $retain --out "runs/wiki/$preset-$retain.png"
done
