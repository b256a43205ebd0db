#!/usr/bin/env bash
# A labeller that errs both ways: SGTM and filtering over true and false positive rates.
#   scripts/tinystories/grid.sh [--preset cpu|paper] [--out DIR] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
out=${out:-runs/tinystories/grid-$preset}
sgtm sweep "configs/sweeps/tinystories/grid-$preset.yaml" --out "$out" ${options[@]+"${options[@]}"}
$look || sgtm plot grid "$out" --against filter --out "$out.png"
