#!/usr/bin/env bash
# Forget against retain loss in the course of training, at 1 % undiscovered, calibrated at every evaluation.
#   scripts/tinystories/tradeoff.sh [--preset cpu|paper] [--out DIR] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
out=${out:-runs/tinystories/tradeoff-$preset}
sgtm sweep "configs/sweeps/tinystories/tradeoff-$preset.yaml" --out "$out" ${options[@]+"${options[@]}"}
$look || sgtm plot tradeoff "$out" --out "$out.png"
