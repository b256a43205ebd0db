#!/usr/bin/env bash
# Leakage of the runs of mislabeling.sh, read off ordinary models with more and more forget data; both are trained where
# they are missing.
#   scripts/tinystories/leakage.sh [--preset cpu|paper] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
runs="runs/tinystories/mislabeling-$preset"
sgtm sweep "configs/sweeps/tinystories/mislabeling-$preset.yaml" ${options[@]+"${options[@]}"}
$look || sgtm leakage "$runs"/{sgtm,gradient_routing,filter}-* --references "runs/tinystories/leakage-$preset" --out "$runs.leakage.jsonl"
$look || sgtm plot leakage "$runs.leakage.jsonl" --out "$runs.leakage.png"
