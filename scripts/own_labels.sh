# Labels of one's own: SGTM against a filter, both with the labels of a classifier that learned from few examples. Sourced by
# tinystories/own_labels.sh and wiki/own_labels.sh, which define
#   texts        writes $out/texts.parquet, $out/texts-examples-N.parquet for each quality, and $out/test.parquet
#   config (files), settings (of `sgtm train`), prepare (of `sgtm data texts`), qualities ("EXAMPLES:TARGET ...")
# `none` and a filter of the true labels frame the comparison. What is there already is not made again.
# Results: $out/runs/*/metrics.jsonl and $out/tradeoff.png; of the labels: $out/labels-*/manifest.json.
out=${out:-runs/own_labels-$preset}
by_seed
set -- ${options[@]+"${options[@]}"}
while (($#)); do
  case $1 in
    --source) source=$2; shift 2 ;;
    --test) test=$2; shift 2 ;;
    --topics) topics=$2; shift 2 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done

unless() { # FILE COMMAND...: the command, unless the file or folder is there
  [[ -e $1 ]] || ${run[@]+"${run[@]}"} "${@:2}"
}

train() { # DATA METHOD SEED NAME [OPTIONS]
  unless "$out/runs/$4/model" sgtm train "${config[@]}" --data.path "$1" --method "$2" --seed "$3" --run-dir "$out/runs/$4" \
    ${settings[@]+"${settings[@]}"} "${@:5}"
}

prepared() { # SOURCE DATA
  unless "$2" sgtm data texts --source "$1" --test-source "$out/test.parquet" --out "$2" "${prepare[@]}"
}

compare() {
  ${run[@]+"${run[@]}"} mkdir -p "$out/runs"
  texts
  prepared "$out/texts.parquet" "$out/data-true"
  local seed quality n method
  for seed in $seeds; do
    train "$out/data-true" none "$seed" "none-seed$seed"
    train "$out/data-true" filter "$seed" "filter-true-seed$seed" --labels.undiscovered 0
    for quality in $qualities; do
      n=${quality%:*}
      unless "$out/labels-$n" sgtm label "$out/texts.parquet" --examples "$out/texts-examples-$n.parquet" --out "$out/labels-$n" \
        --target-precision "${quality#*:}" --target-recall "${quality#*:}"
      prepared "$out/labels-$n" "$out/data-$n"
      for method in sgtm filter; do # the labels are read as they are: no noise on top
        train "$out/data-$n" "$method" "$seed" "$method-$n-seed$seed" --labels.undiscovered None
      done
    done
  done
  ${run[@]+"${run[@]}"} sgtm plot tradeoff "$out"/runs/* --out "$out/tradeoff.png"
}
