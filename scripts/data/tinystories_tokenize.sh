#!/usr/bin/env bash
# English and Spanish TinyStories -> data/datasets/tinystories: GPT-2 tokens, rows of 512, what configs/tinystories read.
# Options are those of `sgtm data tinystories` (--source data/tinystories_es.parquet for translations of your own);
# --dry-run only shows the command.
#   scripts/data/tinystories_tokenize.sh
set -euo pipefail
PATH="$PATH:$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin"
command=(sgtm data tinystories --tokenizer gpt2 --context 512 --out data/datasets/tinystories)
for option in "$@"; do
  if [[ $option == --dry-run ]]; then dry_run=1; else command+=("$option"); fi
done
if [[ -n ${dry_run:-} ]]; then echo "${command[@]}"; else exec "${command[@]}"; fi
