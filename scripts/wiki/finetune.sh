#!/usr/bin/env bash
# Relearning: SGTM, the weak and the strict filter and RMU are fine-tuned on half biology, half retain text until their
# biology loss is that of the model without a filter; then the figure. Killed, it goes on where it was.
#   scripts/wiki/finetune.sh [--preset cpu|paper] [--seeds "0 1 2"] [--matched weak] [--out DIR] [--dry-run] [options of `sgtm relearn`]
# --matched ROW begins instead with those checkpoints whose retain loss is nearest to that of ROW's model (train.keep_checkpoints
# must have kept some; not RMU, which has none).
source "$(dirname "$0")/../preset.sh"
by_seed
rest=() rows=(sgtm weak strict rmu) matched=""
set -- ${options[@]+"${options[@]}"}
while (($#)); do
  case $1 in
    --matched) matched=${2:-} rows=(sgtm weak strict); shift ;;
    *) rest+=("$1") ;;
  esac
  (($#)) && shift
done
case $preset in
  cpu) settings=(--tokens 2048 --steps 400 --warmup-steps 10 --evaluate.every 20 --evaluate.rows 100 --learning-rates 1e-3 3e-3) ;;
  paper) settings=(--tokens 524288 --steps 1000 --warmup-steps 200 --evaluate.every 25 --evaluate.rows 2000 --learning-rates 2e-4 --precision bf16) ;;
esac
runs="runs/wiki/$preset" out=${out:-runs/wiki/relearning-$preset${matched:+-$matched}}
for seed in $seeds; do
  for row in "${rows[@]}"; do
    match=(${matched:+--match "$runs/$matched-seed$seed"})
    ${run[@]+"${run[@]}"} sgtm relearn "$runs/$row-seed$seed" --out "$out/$row-seed$seed" --target "$runs/none-seed$seed" \
      --seed "$seed" "${settings[@]}" ${match[@]+"${match[@]}"} ${rest[@]+"${rest[@]}"}
  done
done
${run[@]+"${run[@]}"} sgtm plot relearning "$out" --out "$out.png"
