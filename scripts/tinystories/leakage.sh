#!/usr/bin/env bash
# Leakage of the runs of mislabeling.sh and of smaller models (8M, 18M and 34M; one, with the CPU preset), read off ordinary models with more and more
# forget data; all are trained where they are missing. --dry-run does not count the ordinary models: which are missing, and what they
# take, `sgtm leakage RUNS --dry-run` says of finished runs.
#   scripts/tinystories/leakage.sh [--preset cpu|paper] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
fixed_out "runs/tinystories/leakage-$preset, and reads runs/tinystories/mislabeling-$preset"
out=runs/tinystories/leakage-$preset
sgtm sweep "configs/sweeps/tinystories/mislabeling-$preset.yaml" ${options[@]+"${options[@]}"}
case $preset in
  cpu) sgtm sweep configs/sweeps/tinystories/leakage-cpu.yaml ${options[@]+"${options[@]}"} ;;
  paper)
    for size in 8M 18M 34M; do
      sgtm sweep configs/sweeps/tinystories/leakage-paper.yaml "configs/tinystories/$size.yaml" --out "$out/$size" ${options[@]+"${options[@]}"}
    done ;;
esac
$look && { echo "not counted: the ordinary models that leakage is read off (sgtm leakage RUNS --dry-run, of finished runs)"; exit; }
runs=(runs/tinystories/mislabeling-"$preset"/{sgtm,gradient_routing,filter}-*) shares=()
case $preset in
  cpu) runs+=("$out"/undiscovered*) ;;
  paper) runs+=("$out"/*M/undiscovered*) ;;
esac
[[ $preset == paper ]] || shares=(--shares 0 0.001 0.003 0.01 0.03 0.1 0.3)
sgtm leakage "${runs[@]}" --references "$out/references" --out "$out.jsonl" ${shares[@]+"${shares[@]}"}
sgtm plot leakage "$out.jsonl" --out "$out.png"
