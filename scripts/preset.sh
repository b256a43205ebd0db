# Read by the scripts beside it: takes --preset cpu|paper (paper by default) out of their options, and leaves
#   preset     cpu or paper
#   options    the others, for `sgtm sweep`
#   look       true where they only ask what would be, or is (--dry-run, --status), or hand the runs to a cluster
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"
preset=paper options=() look=false
while (($#)); do
  case $1 in
    --preset) preset=${2:-}; shift ;;
    --preset=*) preset=${1#*=} ;;
    --dry-run | --status | --slurm | -h | --help) look=true options+=("$1") ;;
    *) options+=("$1") ;;
  esac
  (($#)) && shift
done
case $preset in cpu | paper) ;; *) echo "$0: --preset $preset is neither cpu nor paper" >&2; exit 2 ;; esac
