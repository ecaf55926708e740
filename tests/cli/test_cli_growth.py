"""`mta growth`: what it prints and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli_world import QUICK, good, mta, refused


def test_growth_prints_the_table_or_the_points(films: Any, tmp_path: Path) -> None:
    words = ("growth", "lamp-2", *films.both, *QUICK, "--users", 1, "--users", 2, "--out", tmp_path / "growth")
    said = good(*words).out
    kept = json.loads((tmp_path / "growth" / "growth.json").read_text())
    assert (tmp_path / "growth" / "table.md").read_text().strip() in said
    assert said.count("\n| mta q,v |") == 2
    assert kept["run"]["command"].startswith("mta")
    again = good(*words, "--json").json
    assert again["points"] == kept["points"]


def test_growth_refuses_more_users_than_there_are(films: Any, tmp_path: Path) -> None:
    words = ("growth", "lamp-2", *films.both, *QUICK, "--out", tmp_path / "growth")
    assert "each from 1 to 2" in refused(*words, "--users", 1, "--users", 5)
    assert mta(*words).code == 2
    assert mta(*words, "--users", 0).code == 2
    assert not (tmp_path / "growth").exists()
