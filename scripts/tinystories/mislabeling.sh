#!/usr/bin/env bash
# Undiscovered forget data: SGTM, Gradient Routing and filtering at every share of it.
#   scripts/tinystories/mislabeling.sh [--preset cpu|paper] [--out DIR] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
out=${out:-runs/tinystories/mislabeling-$preset}
sgtm sweep "configs/sweeps/tinystories/mislabeling-$preset.yaml" --out "$out" ${options[@]+"${options[@]}"}
$look || sgtm plot undiscovered "$out" --out "$out.png"
