# shellcheck shell=bash
# What the launchers share: the line `python -m prompt_tuning.train ...`, and --dry-run.
#
# Sourced, not run. Flags of the launcher go to training as they are, except --dry-run
# and --help. Settings of a launcher are variables of the environment.

DRY_RUN=false
FLAGS=()
for flag in "$@"; do
  case "$flag" in
    --dry-run) DRY_RUN=true ;;
    -h | --help)
      # The head of the launcher says how to use it.
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) FLAGS+=("$flag") ;;
  esac
done
if [[ ${#FLAGS[@]} -eq 0 ]]; then
  echo "error: no flags of training; give at least --gin_file=RECIPE (--help says more)" >&2
  exit 2
fi

# The one line that all launchers run, in whatever way.
TRAIN=("${PYTHON:-python}" -m prompt_tuning.train "${FLAGS[@]}")

# need NAME... : ends with a message where a setting is missing.
need() {
  local name
  for name in "$@"; do
    if [[ -z "${!name:-}" ]]; then
      echo "error: set $name, as in: $name=... $0 ${FLAGS[*]}" >&2
      exit 2
    fi
  done
}

# quoted WORD... : the words as a shell reads them back.
quoted() {
  local line
  line=$(printf '%q ' "$@")
  echo "${line% }"
}

# launch WORD... : runs a command, or prints it with --dry-run.
launch() {
  if $DRY_RUN; then
    quoted "$@"
  else
    "$@"
  fi
}
