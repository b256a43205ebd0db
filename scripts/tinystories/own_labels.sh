#!/usr/bin/env bash
# English kept, Spanish removed, with labels of one's own: three classifiers, of 20, 50 and 300 examples, each with the precision
# and recall that so few can vouch for; SGTM and a filter with the labels of each.
#   scripts/tinystories/own_labels.sh --source TRAIN.parquet --test TEST.parquet [--preset cpu|paper] [--out DIR] [--seeds "0 1 2"] [--dry-run]
# TRAIN and TEST have the columns text and text_es. Labels of rows need modes that are mixed by example: recipes/mixed.yaml.
source "$(dirname "$0")/../preset.sh"
source scripts/own_labels.sh
[[ ${source:-} && ${test:-} ]] || { echo "give --source TRAIN.parquet --test TEST.parquet" >&2; exit 2; }
qualities="20:0.7 50:0.9 300:0.95"
case $preset in
  cpu) config=(configs/tinystories/cpu.yaml) settings=(--train.steps 400) prepare=(--tokenizer train:1024 --context 64 --pack) ;;
  paper) config=(configs/tinystories/64M.yaml recipes/mixed.yaml) prepare=(--context 512) ;;
esac
texts() {
  unless "$out/texts.parquet" python scripts/tinystories/pairs_to_texts.py "$source" "$out/texts" --examples 20 50 300
  unless "$out/test.parquet" python scripts/tinystories/pairs_to_texts.py "$test" "$out/test"
}
compare
