#!/usr/bin/env bash
# Warm starts of the mixed recipe on the CPU preset, as many steps in all as recipes-cpu.yaml has: an ordinary model reads 100 steps of
# what a filter leaves, then 300 steps of all data with forget units that it had (two heads; one head and neurons), that it is given
# (neurons), or with none.
#   scripts/tinystories/warm_start.sh --preset cpu [--seeds "0 1 2"] [--dry-run]
source "$(dirname "$0")/../preset.sh"
[[ $preset == cpu ]] || { echo "warm_start.sh has no --preset $preset; use --preset cpu" >&2; exit 2; }
fixed_out "runs/tinystories/recipes-cpu, where recipes-cpu.yaml has its runs"
out=runs/tinystories/recipes-cpu
by_seed
[[ ! ${options[*]-} ]] || { echo "unknown options ${options[*]}" >&2; exit 2; }
train() { # NAME [OPTIONS]: the run, unless it is complete
  [[ -e $out/$1/model ]] || ${run[@]+"${run[@]}"} sgtm train configs/tinystories/cpu.yaml "${@:2}" --run-dir "$out/$1" --seed "$seed"
}
for seed in $seeds; do
  warm=(recipes/warm.yaml --model.from-pretrained "$out/start-seed$seed/model" --train.steps 300)
  train "start-seed$seed" --method filter --train.steps 100
  train "warm_heads-seed$seed" "${warm[@]}"
  train "warm_own-seed$seed" "${warm[@]}" --partition.heads 1 --partition.neurons 32
  train "warm_added-seed$seed" "${warm[@]}" --partition.heads 0 --partition.neurons 64 --model.expand
  train "warm_none-seed$seed" "${warm[@]}" --method none
done
