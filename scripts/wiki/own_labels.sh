#!/usr/bin/env bash
# Biology removed from Wikipedia, with labels of one's own: three classifiers, of 100, 300 and 600 labelled articles; SGTM and a
# filter with the labels of each.
#   scripts/wiki/own_labels.sh --source ARTICLES --topics TOPICS.csv [--preset cpu|paper] [--out DIR] [--seeds "0 1 2"] [--dry-run]
# ARTICLES and TOPICS are what `sgtm data wikipedia` takes; here topics say what an article truly is, for the few examples and the test.
# Labels of rows need modes that are mixed by example: recipes/mixed.yaml.
source "$(dirname "$0")/../preset.sh"
out=${out:-runs/wiki/own_labels-$preset}
source scripts/own_labels.sh
[[ ${source:-} && ${topics:-} ]] || { echo "give --source ARTICLES --topics TOPICS.csv" >&2; exit 2; }
settings=(--evaluate.topics 0) # texts have categories, no topics
qualities="100:0.8 300:0.9 600:0.95"
case $preset in
  cpu) config=(configs/wiki/cpu.yaml) settings+=(--train.steps 1200) prepare=(--tokenizer train:2048 --context 128 --pack) ;;
  paper) config=(configs/wiki/64M.yaml recipes/mixed.yaml) prepare=(--context 1024 --pack) ;;
esac
texts() {
  unless "$out/test.parquet" python scripts/wiki/articles_to_texts.py "$source" "$topics" "$out" --examples 100 300 600
}
compare
