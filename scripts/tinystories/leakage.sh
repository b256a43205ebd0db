#!/usr/bin/env bash
# Leakage of the runs of mislabeling.sh and, with the CPU preset, of a smaller model, read off ordinary models with more and more
# forget data; all are trained where they are missing. --dry-run does not count the ordinary models: which are missing, and what they
# take, `sgtm leakage RUNS --dry-run` says of finished runs.
#   scripts/tinystories/leakage.sh [--preset cpu|paper] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
fixed_out "runs/tinystories/leakage-$preset, and reads runs/tinystories/mislabeling-$preset"
out=runs/tinystories/leakage-$preset
sgtm sweep "configs/sweeps/tinystories/mislabeling-$preset.yaml" ${options[@]+"${options[@]}"}
[[ $preset == paper ]] || sgtm sweep configs/sweeps/tinystories/leakage-cpu.yaml ${options[@]+"${options[@]}"}
$look && { echo "not counted: the ordinary models that leakage is read off (sgtm leakage RUNS --dry-run, of finished runs)"; exit; }
runs=(runs/tinystories/mislabeling-"$preset"/{sgtm,gradient_routing,filter}-*) shares=()
[[ $preset == paper ]] || runs+=("$out"/undiscovered*) shares=(--shares 0 0.001 0.003 0.01 0.03 0.1 0.3)
sgtm leakage "${runs[@]}" --references "$out/references" --out "$out.jsonl" ${shares[@]+"${shares[@]}"}
sgtm plot leakage "$out.jsonl" --out "$out.png"
