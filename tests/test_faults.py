"""A small helping of `benchmarks/faults.py`: twenty kills of real processes, damaged files, two at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "faults.py"


def test_nothing_is_lost_or_damaged(tmp_path: Path) -> None:
    parts = ("runs", "writes", "damage", "fuzz", "two")
    asked = ["--kills", "10", "--out", str(tmp_path), *(word for part in parts for word in ("--only", part))]
    done = subprocess.run([sys.executable, str(SCRIPT), *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "faults.json").read_text())
    assert (found["runs"]["kills"], found["writes"]["kills"], found["two"]["pairs"]) == (10, 10, 1)
    assert found["fuzz"]["inputs"] == 500
    assert sum(found["damage"]["damaged"].values()) == 10
