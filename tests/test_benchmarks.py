"""Benchmarks run everywhere, small: those that need a GPU, processes of their own, or reach into the engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("gpu.py", "--shape", "tiny", "--device", "cpu", "--users", "2", "--items", "8", "--repeats", "1"), "floor"),
        (("ablations.py", "--base", "tiny-random", "--case", "lamp-2", "--repeats", "1", "--anyway"), "time / engine"),
        (("peak_memory.py", "--base", "tiny-random", "--case", "lamp-2"), "more than at the start"),
        (("process_per_user.py", "--base", "tiny-random", "--users", "1", "--repeats", "1", "--anyway"), "users/s"),
        (("infer.py", "--base", "tiny-random", "--users", "2", "--repeats", "1", "--anyway"), "base / engine"),
    ],
    ids=["gpu", "ablations", "peak-memory", "process-per-user", "infer"],
)
def test_it_runs_and_finds_equal_losses(words: tuple[str, ...], wanted: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / words[0]), *words[1:], "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert wanted in done.stdout
    assert list(tmp_path.glob("*.json"))
