#!/usr/bin/env bash
# One page, the paper's tables and all plots from the scores that tables.sh and figures.sh have left in docs/results.
#
#   benchmarks/results.sh
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
mta=${MTA:-$here/.venv/bin/mta}
python=${PYTHON:-$here/.venv/bin/python}
cd "$here/docs/results"

options=()
for file in figures/*/growth.json; do [ -e "$file" ] && options+=(--growth "$file"); done
for file in figures/*/*/scores.json; do [ -e "$file" ] && options+=(--sweep "$(dirname "$file")"); done
"$mta" report lamp-1 lamp-2 lamp-3 lamp-4 lamp-5 "${options[@]}" --plots plots --tables tables --out report.html
rm -f tables/lamp-*  # each task's table lies beside its scores already
"$python" "$here/benchmarks/results_page.py" .
