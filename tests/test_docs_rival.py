"""docs/adding_a_rival.md does what it says: its file and its lines make a row of the table."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli_world import QUICK, film_record, good, write_films

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_a_rival.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.usefixtures("own_cache")


def follow_the_page(source: Path) -> None:
    """Add the page's file and its two lines to a copy of the package, where the page says."""
    code, imported, line = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (place,) = re.findall(r"`src/(mta/baselines/\w+\.py)`:\n\n```python", PAGE)
    (source / place).write_text(code)
    methods = source / "mta" / "baselines" / "methods.py"
    text = methods.read_text()
    text = text.replace("from mta.baselines.oppu import", f"{imported}from mta.baselines.oppu import", 1)
    methods.write_text(text.replace('"base": base_model,\n', f'"base": base_model,\n        {line}', 1))


def test_one_file_and_one_line_make_a_row(tmp_path: Path) -> None:
    """The row is that of merging one anchor, with statistics, costs and its place on the page, alone or with others."""
    shutil.copytree(ROOT / "src" / "mta", tmp_path / "src" / "mta")
    follow_the_page(tmp_path / "src")
    pool = write_films(tmp_path / "pool_questions.json", [film_record(name) for name in ("abe", "bea", "cleo")])
    targets = write_films(tmp_path / "target_questions.json", [film_record(name) for name in ("dan", "eve")])
    world = [str(word) for word in ("run", "lamp-2", "--pool", pool, "--targets", targets, *QUICK, "--threads", 1)]

    def scores(name: str, *methods: str) -> dict[str, Any]:
        rows = [word for method in methods for word in ("--method", method)]
        command = [sys.executable, "-c", "from mta.cli.main import main; main()", *world, *rows]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run(
            [*command, "--out", str(tmp_path / name)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads((tmp_path / name / "scores.json").read_text()))

    both = scores("both", "base", "mta", "nearest-anchor")
    row = both["methods"]["nearest-anchor"]
    assert list(both["methods"]) == ["base", "mta", "nearest-anchor"]
    assert both["judged"]["best_rival"]["nll"] == "nearest-anchor"
    assert ("mta", "nearest-anchor") in {(pair["a"], pair["b"]) for pair in both["comparisons"]}
    assert row["shared_train_seconds"] == both["methods"]["mta"]["shared_train_seconds"] > 0
    assert "nearest-anchor" in (tmp_path / "both" / "report.html").read_text()
    assert scores("alone", "nearest-anchor")["methods"]["nearest-anchor"]["metrics"] == row["metrics"]
    good(*world, "--top-k", 1, "--method", "merged-only", "--out", tmp_path / "one")
    one = json.loads((tmp_path / "one" / "scores.json").read_text())["methods"]["merged-only"]
    assert row["metrics"] == pytest.approx(one["metrics"])
