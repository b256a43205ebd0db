#!/usr/bin/env bash
# Labels of one's own: SGTM against a filter, both with the labels of a classifier that learned from few examples.
#   scripts/tinystories/own_labels.sh --source TRAIN.parquet --test TEST.parquet [--preset cpu] [--seeds "0 1 2"] [--dry-run]
# TRAIN and TEST have the columns text and text_es. Three qualities of labels: 20, 50 and 300 examples, each with the
# precision and recall that so few can vouch for. `none` and a filter of the true labels frame the comparison.
# Results: OUT/runs/*/metrics.jsonl and OUT/tradeoff.png; of the labels: OUT/labels-*/manifest.json.
set -euo pipefail
PATH="$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin:$PATH"

source="" test="" out=runs/own_labels seeds="0 1 2" preset=paper run=""
while (($#)); do
  case $1 in
    --source) source=$2; shift 2 ;;
    --test) test=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --seeds) seeds=$2; shift 2 ;;
    --preset) preset=$2; shift 2 ;;
    --dry-run) run=echo; shift ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done
[[ $source && $test ]] || { echo "give --source TRAIN.parquet --test TEST.parquet" >&2; exit 2; }
case $preset in
  cpu) config=configs/tinystories/cpu.yaml prepare="--tokenizer train:1024 --context 64 --pack" ;;
  paper) config=configs/tinystories/64M.yaml prepare="--context 512" ;;
  *) echo "--preset $preset is neither cpu nor paper" >&2; exit 2 ;;
esac
python=${PYTHON:-python}
sgtm="$python -m sgtm.cli"

train() { # DATA METHOD SEED NAME [OPTIONS]
  [[ -d $out/runs/$4/model ]] || $run $sgtm train $config --data.path "$1" --method "$2" --seed "$3" \
    --run-dir "$out/runs/$4" "${@:5}"
}

$run mkdir -p "$out/runs"
[[ -f $out/texts.parquet ]] || $run $python scripts/tinystories/pairs_to_texts.py "$source" "$out/texts" --examples 20 50 300
[[ -f $out/test.parquet ]] || $run $python scripts/tinystories/pairs_to_texts.py "$test" "$out/test"
[[ -d $out/data-true ]] || $run $sgtm data texts --source "$out/texts.parquet" --test-source "$out/test.parquet" \
  --out "$out/data-true" $prepare
for seed in $seeds; do
  train "$out/data-true" none "$seed" "none-seed$seed"
  train "$out/data-true" filter "$seed" "filter-true-seed$seed" --labels.undiscovered 0
done
for quality in 20:0.7 50:0.9 300:0.95; do
  n=${quality%:*} target=${quality#*:}
  [[ -d $out/labels-$n ]] || $run $sgtm label "$out/texts.parquet" --examples "$out/texts-examples-$n.parquet" \
    --out "$out/labels-$n" --target-precision "$target" --target-recall "$target"
  [[ -d $out/data-$n ]] || $run $sgtm data texts --source "$out/labels-$n" --test-source "$out/test.parquet" \
    --out "$out/data-$n" $prepare
  for seed in $seeds; do
    for method in sgtm filter; do # the labels are read as they are: no noise on top
      train "$out/data-$n" "$method" "$seed" "$method-$n-seed$seed" --labels.undiscovered None
    done
  done
done
[[ $run ]] || $sgtm plot tradeoff "$out"/runs/* --out "$out/tradeoff.png"
