#!/usr/bin/env bash
# Biology removed from Wikipedia: SGTM, no filter, weak and strict filter, three seeds; losses by category and topic.
#   scripts/wiki/run.sh [--preset cpu|paper] [--out DIR] [--dry-run] [options of `sgtm sweep`; --model.config.* and others of `sgtm train`]
# Other sizes: sgtm sweep configs/sweeps/wiki/runs-paper.yaml configs/wiki/254M.yaml --out runs/wiki/254M
source "$(dirname "$0")/../preset.sh"
out=${out:-runs/wiki/$preset}
sgtm sweep "configs/sweeps/wiki/runs-$preset.yaml" --out "$out" ${options[@]+"${options[@]}"}
for retain in retain adjacent; do
  $look || sgtm plot tradeoff "$out" --retain $retain --out "$out-$retain.png"
done
