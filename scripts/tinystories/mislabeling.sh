#!/usr/bin/env bash
# Undiscovered forget data: SGTM, Gradient Routing and filtering at every share of it.
#   scripts/tinystories/mislabeling.sh [--preset cpu|paper] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
sgtm sweep "configs/sweeps/tinystories/mislabeling-$preset.yaml" ${options[@]+"${options[@]}"}
$look || sgtm plot undiscovered "runs/tinystories/mislabeling-$preset" --out "runs/tinystories/mislabeling-$preset.png"
