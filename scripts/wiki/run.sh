#!/usr/bin/env bash
# Biology removed from Wikipedia: SGTM, no filter, weak and strict filter, three seeds; losses by category and topic.
#   scripts/wiki/run.sh [--preset cpu|paper] [--dry-run] [options of `sgtm sweep`; --model.config.* and others of `sgtm train`]
# Other sizes: sgtm sweep configs/sweeps/wiki/runs-paper.yaml configs/wiki/254M.yaml --out runs/wiki/254M
source "$(dirname "$0")/../preset.sh"
sgtm sweep "configs/sweeps/wiki/runs-$preset.yaml" ${options[@]+"${options[@]}"}
for retain in retain adjacent; do
  $look || sgtm plot tradeoff "runs/wiki/$preset" --retain $retain --out "runs/wiki/$preset-$retain.png"
done
