#!/usr/bin/env bash
# English TinyStories -> data/tinystories_es.parquet, with a Spanish translation of each story (Anthropic Message Batches).
# ANTHROPIC_API_KEY must be set. Options are those of `sgtm data translate`; --dry-run says what it would cost.
#   scripts/data/translate_to_spanish.sh --dry-run
#   scripts/data/translate_to_spanish.sh --budget-dollars 100
# If it stops (killed, over budget), the same command goes on.
set -euo pipefail
PATH="$PATH:$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin"
exec sgtm data translate --source roneneldan/TinyStories --out data/tinystories_es.parquet "$@"
