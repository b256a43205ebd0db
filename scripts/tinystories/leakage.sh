#!/usr/bin/env bash
# Leakage of the runs of mislabeling.sh, read off a grid of ordinary models with more and more forget data.
#   scripts/tinystories/leakage.sh [--preset cpu|paper] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
sgtm sweep "configs/sweeps/tinystories/mislabeling-$preset.yaml" ${options[@]+"${options[@]}"}
sgtm sweep "configs/sweeps/tinystories/leakage-$preset.yaml" ${options[@]+"${options[@]}"}
$look || sgtm leakage "runs/tinystories/mislabeling-$preset"/sgtm-* --references "runs/tinystories/leakage-$preset"
