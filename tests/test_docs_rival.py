"""docs/adding_a_rival.md does what it says: its file and its line make a row of the table."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest

from mta.baselines import methods
from mta.evaluation.answers import method_record
from mta.evaluation.run import open_run, run
from mta.personalize import match_users
from small_run import RUN, small_world

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adding_a_rival.md"
pytestmark = pytest.mark.usefixtures("own_cache")


def written(folder: Path) -> tuple[ModuleType, str]:
    """Put the page's file into a folder and import it; return it with the page's dict line."""
    code, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = folder / "nearest_anchor.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("nearest_anchor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, line


def test_one_file_and_one_line_make_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, line = written(tmp_path)
    added = eval(f"{{{line}}}", vars(module))
    monkeypatch.setattr(methods, "METHODS", MappingProxyType({**methods.METHODS, **added}))
    config = replace(RUN, methods=("base", "mta", "nearest-anchor"))
    scores = run(*small_world(), config, tmp_path / "run").scores
    assert list(scores["methods"]) == ["base", "mta", "nearest-anchor"]
    assert ("mta", "nearest-anchor") in {(row["a"], row["b"]) for row in scores["comparisons"]}
    assert "nearest-anchor" in (tmp_path / "run" / "report.html").read_text()
    pool, targets = small_world()
    one = run(pool, targets, replace(config, top_k=1, methods=("merged-only",)), tmp_path / "one").scores
    assert scores["methods"]["nearest-anchor"]["metrics"] == pytest.approx(one["methods"]["merged-only"]["metrics"])


def test_it_needs_nothing_but_the_function(tmp_path: Path) -> None:
    module, _ = written(tmp_path)
    pool, targets = small_world()
    resources = open_run(pool, targets, RUN, tmp_path / "run")
    record = method_record("anything", module.nearest_anchor, targets, resources, tmp_path / "run")
    assert len(record.predictions) == 9
    assert set(match_users(targets, resources)) == {row.user_id for row in record.predictions}
    assert "nearest_anchor" not in sys.modules
