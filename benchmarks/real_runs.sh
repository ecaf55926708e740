#!/usr/bin/env bash
# Real users, all five LaMP tasks, a small real model: what docs/results/<task>/ was made with.
#
#   benchmarks/real_runs.sh DATA RUNS [TASK...]
#
# DATA holds LaMP_1 ... LaMP_5 with pool_questions.json and target_questions.json (answers beside them); RUNS takes the run
# folders, which hold user text and stay out of the repository. A killed run continues when the script is called again.
# What was capped stands in the command, in scores.json and in the table's page.
set -euo pipefail

data=$1
runs=$2
shift 2
tasks=${*:-lamp-2 lamp-4 lamp-3 lamp-1 lamp-5}
here=$(cd "$(dirname "$0")/.." && pwd)
mta=${MTA:-$here/.venv/bin/mta}
export HF_HUB_OFFLINE=1

common="--base smollm2-135m --history-words 60 --input-words 120 --max-tokens 768 --seed 42"
declare -A caps=(
  [lamp-1]="--bank-size 8 --max-items 16 --adapt-max-items 6 --min-history 10 --users 24"
  [lamp-2]="--bank-size 8 --max-items 20 --adapt-max-items 6 --min-history 10 --users 24"
  [lamp-3]="--bank-size 6 --max-items 16 --adapt-max-items 6 --min-history 10 --users 20"
  [lamp-4]="--bank-size 8 --max-items 16 --adapt-max-items 6 --min-history 10 --users 30"
  [lamp-5]="--bank-size 6 --max-items 12 --adapt-max-items 5 --min-history 10 --users 20 --drop-leaks"
)

for task in $tasks; do
  folder=$data/LaMP_${task#lamp-}
  # shellcheck disable=SC2086 # the options are words
  "$mta" run "$task" --pool "$folder/pool_questions.json" --targets "$folder/target_questions.json" \
    $common ${caps[$task]} --out "$runs/$task"
  out=$here/docs/results/$task
  mkdir -p "$out"
  cp "$runs/$task/scores.json" "$runs/$task/table.md" "$runs/$task/table.csv" "$out/"
done
