"""The ladder of docs/personalization.md, on a model and people small enough for a test."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from mta.cli.settings import tiny_encoders
from mta.data.lamp import write_lamp
from mta.data.personas import make_pool_and_targets
from mta.files import read_json
from mta.presets import Preset, find_preset

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ladder

    return ladder


def quick(name: str, task_id: str) -> Preset:
    """A preset at the size of a test."""
    found = find_preset(name, task_id)
    few = {"epochs": 1, "max_items": 2, "held_out_share": 0.0}
    bank = tiny_encoders(found.bank)
    bank = replace(
        bank,
        anchors=replace(bank.anchors, bank_size=2, min_history=0),
        train=replace(bank.train, **few),
        population_train=replace(bank.population_train, **few),
        judges=min(bank.judges, 2),
    )
    return replace(found, bank=bank, adapt=replace(found.adapt, epochs=1, max_items=2))


def test_every_row_is_a_method_and_the_rungs_lead_to_what_is_recommended(ladder: ModuleType) -> None:
    for task_id in ("lamp-1", "lamp-2", "lamp-3", "lamp-4", "lamp-5"):
        rungs = ladder.rungs(task_id)
        wanted = find_preset("recommended", task_id)
        assert rungs["recommended"].settings == wanted
        assert wanted.method == ladder.JUDGED
        rows = [row for rung in rungs.values() for row in rung.rows]
        assert len(set(rows)) == len(rows)
        for rung in rungs.values():
            assert all(ladder.find_method(method) for method in rung.rows.values())
        beneath = rungs["beneath"].settings.bank
        assert (beneath.population_beneath, beneath.population_train) == (True, wanted.bank.population_train)
        assert beneath.train == find_preset("small", task_id).bank.train


def test_rows_of_all_rungs_stand_in_one_table(ladder: ModuleType, tmp_path: Path, monkeypatch) -> None:
    pool, targets = make_pool_and_targets(
        "lamp-2", pool=8, targets=2, pool_history=4, target_history=4, target_queries=1, seed=0
    )
    folder = tmp_path / "LaMP_2"
    folder.mkdir()
    write_lamp(pool.users, folder / "pool_questions.json", task_name="LaMP_2")
    write_lamp(targets.users, folder / "target_questions.json", task_name="LaMP_2")
    monkeypatch.setattr(ladder, "find_preset", quick)
    rows = ("mta", ladder.JUDGED, "population-adapt", "paper-mta", "mta-small", "mta-core")
    words = [word for row in rows for word in ("--row", row)]
    out = tmp_path / "out"
    places = ("--data", tmp_path, "--work", tmp_path / "work", "--out", out)
    monkeypatch.setattr(
        sys, "argv", ["ladder.py", *map(str, places), "--task", "lamp-2", "--base", "tiny-random", *words]
    )
    ladder.main()
    scores = read_json(out / "scores.json")
    assert set(scores["methods"]) == set(rows)
    assert scores["judged"]["method"] == ladder.JUDGED
    compared = {(row["a"], row["b"]) for row in scores["comparisons"]}
    assert (ladder.JUDGED, "paper-mta") in compared
    assert ("mta", "population-adapt") in compared
    assert "| paper-mta |" in (out / "table.md").read_text()
    before = read_json(out / "scores.json")["methods"]
    ladder.main()
    assert {name: row["metrics"] for name, row in read_json(out / "scores.json")["methods"].items()} == {
        name: row["metrics"] for name, row in before.items()
    }, "a second call goes on"
