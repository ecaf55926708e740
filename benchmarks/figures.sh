#!/usr/bin/env bash
# Figures 3 to 6 on real users: what docs/results/figures/ was made with; figure 2 is made by growth.sh.
#
#   benchmarks/figures.sh DATA RUNS [TASK...]
#
# DATA as for tables.sh; RUNS takes the run folders. Merging alone is swept finely over all target users; merging and
# adapting, which is trained anew at every point, coarsely over the first twelve. The sweeps of a task share a bank (K a
# larger one where twelve clusters keep too few anchors) and the adapters of settings they have in common. A killed
# sweep continues when called again. OPTIONS in the environment is passed on, for example OPTIONS="--threads 1";
# SWEEPS names those to make, all where it is not set.
set -euo pipefail

data=$1
runs=$2
shift 2
tasks=${*:-lamp-2 lamp-4}
here=$(cd "$(dirname "$0")/.." && pwd)
mta=${MTA:-$here/.venv/bin/mta}
export HF_HUB_OFFLINE=1

common="--preset small --base smollm2-135m --dtype bfloat16 --history-words 40 --input-words 90 --max-tokens 768 --min-history 10 --max-items 20
  --seed 42 ${OPTIONS:-}"
few="--users 12"
declare -A deep=([lamp-2]=12 [lamp-4]=32) # anchors asked for so that eight are kept, which K goes up to
declare -A banks=([lamp-2]="4 8 16 32" [lamp-4]="4 8 16 32 64 128") # an anchor of LaMP-2 takes four times as long

sweep() { # sweep NAME OPTIONS...: one sweep, its scores into the repository
  local name=$1 out=$runs/figures/$task/$1
  shift
  [[ " ${SWEEPS:-$name} " == *" $name "* ]] || return 0
  # shellcheck disable=SC2086 # the options are words
  "$mta" sweep "$task" "${files[@]}" $common "$@" --out "$out"
  mkdir -p "$results/$name"
  cp "$out/scores.json" "$out/table.md" "$out/table.csv" "$results/$name/"
}

start_from() { # start_from NEW OLD [POINT]: the bank of another sweep, and its adapters of the settings as asked for a point
  local out=$runs/figures/$task/$1 old=$runs/figures/$task/$2
  [[ -e $out || " ${SWEEPS:-$1} " != *" $1 "* ]] && return
  rm -rf "$out.part"
  mkdir -p "$out.part"
  cp -r "$old/bank" "$out.part/bank"
  if [ $# = 3 ]; then
    mkdir -p "$out.part/points/$3/adapters"
    cp -r "$old/points/as asked/adapters/mta" "$out.part/points/$3/adapters/mta"
  fi
  mv "$out.part" "$out"
}

for task in $tasks; do
  folder=$data/LaMP_${task#lamp-}
  files=(--pool "$folder/pool_questions.json" --targets "$folder/target_questions.json")
  results=$here/docs/results/figures/$task

  sweep weight-merged --bank-size 12 --over weight --method merged-only
  sweep top-k-merged --bank-size "${deep[$task]}" --over top-k --method merged-only
  start_from weight weight-merged
  sweep weight --bank-size 12 --over weight --value 0 --value 0.5 --value 1 $few
  start_from top-k top-k-merged
  sweep top-k --bank-size "${deep[$task]}" --over top-k --value 1 --value 2 --value 4 --value 8 $few
  start_from rank weight 4
  sweep rank --bank-size 12 --over rank --value 2 --value 4 --value 6 --value 8 --value 16 $few

  # shellcheck disable=SC2086 # numbers
  sweep bank-size-merged --over bank-size --method merged-only $(printf -- "--value %s " ${banks[$task]})
done
