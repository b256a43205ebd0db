#!/usr/bin/env bash
# A labeller that errs both ways: SGTM and filtering over true and false positive rates.
#   scripts/tinystories/grid.sh [--preset cpu|paper] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
sgtm sweep "configs/sweeps/tinystories/grid-$preset.yaml" ${options[@]+"${options[@]}"}
$look || sgtm plot grid "runs/tinystories/grid-$preset" --against filter --out "runs/tinystories/grid-$preset.png"
