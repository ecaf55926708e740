#!/usr/bin/env bash
# Tables 1 and 2 with every rival and control, on real users of all five LaMP tasks: what docs/results/<task>/ was made with.
#
#   benchmarks/tables.sh DATA RUNS [TASK...]
#
# DATA holds LaMP_1 ... LaMP_5 with pool_questions.json and target_questions.json (answers beside them); RUNS takes the run
# folders, which hold user text and stay out of the repository. A killed run continues when the script is called again.
# One task and seed takes one to six hours on one CPU core, so only LaMP-2 is repeated. What was capped stands in the command, in scores.json and in the table's page.
set -euo pipefail

data=$1
runs=$2
shift 2
tasks=${*:-lamp-2 lamp-4 lamp-5 lamp-1 lamp-3}
here=$(cd "$(dirname "$0")/.." && pwd)
mta=${MTA:-$here/.venv/bin/mta}
export HF_HUB_OFFLINE=1

common="--preset small --base smollm2-135m --method tables --history-words 40 --input-words 90 --max-tokens 768 --min-history 10
  --bank-size 12 --max-items 20 --seed 42"
once="--once oppu-task --once population-matched-adapt --once random-anchors --once uniform-weights --once rag+mta
  --once mta+prior"
declare -A own=(
  [lamp-1]="--seeds 1 --adapt-max-items 6 --users 24"
  [lamp-2]="--seeds 3 $once --dtype bfloat16"
  [lamp-3]="--seeds 1 --adapt-max-items 6 --users 20 --dtype bfloat16"
  [lamp-4]="--seeds 1"
  [lamp-5]="--seeds 1 --adapt-max-items 6 --drop-leaks --dtype bfloat16"
)

for task in $tasks; do
  folder=$data/LaMP_${task#lamp-}
  # shellcheck disable=SC2086 # the options are words
  "$mta" run "$task" --pool "$folder/pool_questions.json" --targets "$folder/target_questions.json" \
    $common ${own[$task]} --out "$runs/$task"
  out=$here/docs/results/$task
  mkdir -p "$out"
  cp "$runs/$task/scores.json" "$runs/$task/table.md" "$runs/$task/table.csv" "$out/"
done
