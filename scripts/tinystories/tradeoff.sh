#!/usr/bin/env bash
# Forget against retain loss in the course of training, at 1 % undiscovered, calibrated at every evaluation.
#   scripts/tinystories/tradeoff.sh [--preset cpu|paper] [--dry-run] [options of `sgtm sweep`]
source "$(dirname "$0")/../preset.sh"
sgtm sweep "configs/sweeps/tinystories/tradeoff-$preset.yaml" ${options[@]+"${options[@]}"}
$look || sgtm plot tradeoff "runs/tinystories/tradeoff-$preset" --out "runs/tinystories/tradeoff-$preset.png"
