#!/usr/bin/env bash
# Everything in docs/results/speed, on an idle machine; about five hours on two cores. GPU figures: gpu.py.
#
#   benchmarks/speed.sh DATA [OUT]
#
# DATA as for tables.sh; OUT is a folder, docs/results without it. The peer polylora takes part where it is installed
# (pip install --no-deps polylora). What is in OUT already is left as it is, so that a stopped call goes on.
set -euo pipefail

data=$1
here=$(cd "$(dirname "$0")/.." && pwd)
results=${2:-$here/docs/results}
out=$results/speed
export HF_HUB_OFFLINE=1

run() { # run SCRIPT OPTIONS...
  local script=$1
  shift
  "$here/.venv/bin/python" "$here/benchmarks/$script" "$@"
}

measure() { # measure FILE SCRIPT OPTIONS...
  local file=$out/$1
  shift
  [ -e "$file" ] || run "$@"
}

infer() { # infer OPTIONS...; goes on with the sizes of batches that are missing
  run infer.py "$@" --out "$out/infer"
}

measure train/lamp-2.json train.py --data "$data" --case lamp-2 --users 4 --out "$out/train"
infer --dtype bfloat16
measure processes/bfloat16-4.json process_per_user.py --data "$data" --out "$out/processes"
run peak_memory.py --data "$data" --only-compared --out "$out/memory"
measure scale.json scale.py --out "$out"
measure train/lamp-2-fp32.json train.py --data "$data" --case lamp-2-fp32 --users 2 --out "$out/train"
infer --new-tokens 64 --users 8 --users 32 --dtype bfloat16
infer --dtype float32
infer --targets qv --dtype bfloat16
for case in lamp-2 lamp-2-fp32; do
  measure "ablations/$case.json" ablations.py --data "$data" --case "$case" --users 2 --out "$out/ablations"
done
for case in lamp-2-1-user lamp-2-2-users lamp-2-50-items lamp-2-100-items lamp-2-qv lamp-2-anchors lamp-2-anchors-qv lamp-5 \
  synthetic 64-users; do
  measure "train/$case.json" train.py --data "$data" --case "$case" --out "$out/train"
done
measure threads.json threads.py --out "$out"
measure store.json store.py --folder "${TMPDIR:-/tmp}" --out "$out"
run speed_page.py "$results"
