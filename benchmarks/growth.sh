#!/usr/bin/env bash
# Figure 2, training time and stored bytes against the number of people: what docs/results/figures/*/growth.* was made with.
#
#   benchmarks/growth.sh DATA RUNS [TASK...]
#
# DATA as for tables.sh; RUNS takes the run folders. It measures times: leave the machine idle meanwhile.
set -euo pipefail

data=$1
runs=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
mta=${MTA:-$here/.venv/bin/mta}
export HF_HUB_OFFLINE=1

for task in ${*:-lamp-2 lamp-4}; do
  folder=$data/LaMP_${task#lamp-}
  out=$runs/figures/$task/growth
  results=$here/docs/results/figures/$task
  "$mta" growth "$task" --pool "$folder/pool_questions.json" --targets "$folder/target_questions.json" \
    --preset small --base smollm2-135m --dtype bfloat16 --history-words 40 --input-words 90 --max-tokens 768 --min-history 10 --max-items 20 --seed 42 \
    --bank-size 12 --users 4 --users 8 --users 16 --out "$out"
  mkdir -p "$results"
  cp "$out/growth.json" "$results/growth.json"
  cp "$out/table.md" "$results/growth.md"
done
