#!/usr/bin/env bash
# Wikipedia (20231101.en) with biology to be removed, as in the paper: data/datasets/wikipedia.
#   bash scripts/data/prepare_wikipedia.sh topics.csv [--dry-run] [options of `sgtm data wikipedia`]
# The topics are those of ORES, rows of wikidata_id,page_id,title,source,topic,score of any wikis.
# A run that was killed goes on when it is started again.
set -euo pipefail
PATH="$PATH:$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin"

case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;; esac
topics=${1:?give the file of ORES topics first}
shift
say=()
options=()
for word in "$@"; do
  if [[ $word == --dry-run ]]; then say=(echo); else options+=("$word"); fi
done
${say[@]+"${say[@]}"} sgtm data wikipedia --topics "$topics" --out data/datasets/wikipedia ${options[@]+"${options[@]}"}
