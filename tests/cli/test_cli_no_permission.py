"""Folders that may not be written to, or not be looked into: one clear line, exit code 2, and nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_world import QUICK, QUICK_ADAPT, QUICK_BANK, refused, snapshot
from permissions import permissions_count


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that may be read but not written to."""
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    folder.chmod(0o500)
    with permissions_count():
        yield folder
    folder.chmod(0o700)


COMMANDS = {
    "run": ("run", "lamp-2", "--pool", "POOL", "--targets", "TARGETS", *QUICK, "--method", "mta"),
    "bank build": ("bank", "build", "--pool", "POOL", "--task", "lamp-2", "--base", "tiny-random", *QUICK_BANK),
    "anchors": ("anchors", "--pool", "POOL", "--task", "lamp-2", "--encoder", "tiny-random", *QUICK_BANK[:4]),
    "match": ("match", "--bank", "RUN/bank", "--targets", "TARGETS"),
    "merge": ("merge", "--bank", "RUN/bank", "--targets", "TARGETS", "--user", "dan"),
    "adapt": ("adapt", "--bank", "RUN/bank", "--targets", "TARGETS", *QUICK_ADAPT),
    "generate": ("generate", "--bank", "RUN/bank", "--targets", "TARGETS", "--method", "base"),
    "evaluate": ("evaluate", "--predictions", "RUN/predictions.jsonl", "--task", "lamp-2"),
    "export": ("export", "RUN", "--user", "dan"),
    "report": ("report", "RUN"),
    "data split": ("data", "split", "POOL", "--task", "lamp-2", "--count", "1", "--history-length", "4"),
    "data personas": ("data", "personas", "--task", "lamp-2", "--pool", "2", "--targets", "1", "--queries", "1"),
    "demo": ("demo", "--base", "tiny-random"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_permission_in_the_output_folder(films: Any, finished_run: Path, locked: Path, name: str) -> None:
    places = {"POOL": films.pool, "TARGETS": films.targets, "RUN": finished_run, "RUN/bank": finished_run / "bank"}
    places["RUN/predictions.jsonl"] = finished_run / "predictions.jsonl"
    before = snapshot(finished_run)
    message = refused(*(places.get(str(word), word) for word in COMMANDS[name]), "--out", locked / "out")
    assert "Permission denied" in message
    assert str(locked) in message
    assert [path.name for path in locked.iterdir()] == ["kept.txt"]
    assert snapshot(finished_run) == before


def test_a_folder_that_may_not_be_read(films: Any, locked: Path) -> None:
    locked.chmod(0o000)
    message = refused("data", "stats", locked / "kept.txt", "--task", "lamp-2")
    assert "cannot read" in message
    assert "Permission denied" in message


GIVEN = {
    "pool": ("run", "lamp-2", "--pool", "HERE", "--targets", "TARGETS", *QUICK, "--method", "mta"),
    "targets": ("run", "lamp-2", "--pool", "POOL", "--targets", "HERE", *QUICK, "--method", "mta"),
    "golds": ("run", "lamp-2", "--pool", "POOL", "--targets", "TARGETS", "--golds", "HERE", *QUICK, "--method", "mta"),
    "base": ("adapt", "--bank", "RUN/bank", "--targets", "TARGETS", "--base", "HERE"),
    "encoder": ("anchors", "--pool", "POOL", "--task", "lamp-2", "--encoder", "HERE"),
    "bank": ("match", "--bank", "HERE", "--targets", "TARGETS"),
    "adapters": ("generate", "--bank", "RUN/bank", "--targets", "TARGETS", "--adapters", "HERE"),
    "predictions": ("evaluate", "--predictions", "HERE", "--task", "lamp-2"),
    "run": ("export", "HERE", "--user", "dan"),
    "report": ("report", "HERE"),
    "sweep": ("report", "RUN", "--sweep", "HERE"),
    "growth": ("report", "RUN", "--growth", "HERE"),
}


@pytest.mark.parametrize("place", ["locked", "long"])
@pytest.mark.parametrize("name", [*GIVEN, *COMMANDS])
def test_a_place_that_cannot_be_looked_at(
    films: Any, finished_run: Path, locked: Path, tmp_path: Path, name: str, place: str
) -> None:
    here = locked / "inside" if place == "locked" else tmp_path / ("x" * 300)
    places = {"POOL": films.pool, "TARGETS": films.targets, "RUN": finished_run, "RUN/bank": finished_run / "bank"}
    places |= {"RUN/predictions.jsonl": finished_run / "predictions.jsonl", "HERE": here}
    words = [places.get(str(word), word) for word in {**COMMANDS, **GIVEN}[name]]
    locked.chmod(0o000)
    message = refused(*words, "--out", tmp_path / "out" if here in words else here)
    assert ("Permission denied" if place == "locked" else "File name too long") in message
    assert str(here) in message
    assert not (tmp_path / "out").exists()
