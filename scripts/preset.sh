# Read by the scripts beside it: takes --preset cpu|paper (paper by default) and --out FOLDER out of their options, and leaves
#   preset     cpu or paper
#   out        the folder that was asked for, or nothing
#   options    the others, for `sgtm sweep`
#   look       true where they only ask what would be, or is (--dry-run, --status), or hand the runs to a cluster
# -h and --help print the head of the script, and run nothing.
set -euo pipefail
preset=paper out="" options=() look=false
while (($#)); do
  case $1 in
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
    --preset) preset=${2:-}; shift ;;
    --preset=*) preset=${1#*=} ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    --out=*) out=${1#*=} ;;
    --dry-run | --status | --slurm) look=true options+=("$1") ;;
    *) options+=("$1") ;;
  esac
  (($#)) && shift
done
case $preset in cpu | paper) ;; *) echo "$0: --preset $preset is neither cpu nor paper; use one of them" >&2; exit 2 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"

by_seed() { # for scripts that are no sweeps: takes --seeds and --dry-run out of the options; leaves seeds and run (echo, or nothing)
  set -- ${options[@]+"${options[@]}"}
  seeds="0 1 2" run=() options=()
  while (($#)); do
    case $1 in
      --dry-run) run=(echo) ;;
      --seeds) seeds=${2:-}; shift ;;
      *) options+=("$1") ;;
    esac
    (($#)) && shift
  done
  return 0
}

fixed_out() { # WHERE: for scripts that write where the next one reads
  [[ ! $out ]] || { echo "$0: --out $out is not taken: it writes $1; leave --out out" >&2; exit 2; }
}
