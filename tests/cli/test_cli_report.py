"""`mta report`: runs, sweeps and growth in one page, and the same as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli_world import QUICK, good, refused


def test_a_run_and_a_sweep_make_one_page_with_plots_and_tables(films: Any, finished_run: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    good(
        *("sweep", "lamp-2", "--over", "weight", "--value", 0, "--value", 1, "--method", "merged-only"),
        *(*films.both, *QUICK, "--out", sweep),
    )
    growth = tmp_path / "growth.json"
    points = [{"method": f"{name} q,v", "users": 2, "seconds": 60.0, "bytes": 1e6} for name in ("mta", "oppu")]
    growth.write_text(json.dumps({"task": "lamp-2", "base": "tiny-random", "points": points}))
    page = tmp_path / "page.html"
    good(
        *("report", finished_run, "--sweep", sweep, "--growth", growth, "--user", "eve", "--targets", films.targets),
        *("--plots", tmp_path / "plots", "--tables", tmp_path / "tables", "--out", page),
    )
    text = page.read_text()
    for wanted in ("Figure 2. Cost of users", "Figure 3. Weight of the nearest anchor", "Table 4.", "User eve"):
        assert wanted in text
    assert "User dan" not in text
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"figure-2-lamp-2-bytes.png", "figure-3-lamp-2-weight-merged-only-nll.svg", "lamp-2-nll.png"} <= drawn
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        *("table-3.md", "table-3.csv", "table-4.md", "table-4.csv", "lamp-2.md", "lamp-2.csv")
    }


def test_a_report_shows_nobodys_text_unless_asked(finished_run: Path, tmp_path: Path) -> None:
    good("report", finished_run, "--out", tmp_path / "page.html")
    assert "User " not in (tmp_path / "page.html").read_text()


def test_scores_without_answers_make_a_report_but_no_cases(finished_run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "scores.json").write_bytes((finished_run / "scores.json").read_bytes())
    good("report", kept, "--out", tmp_path / "page.html")
    assert "has no predictions.jsonl" in refused("report", kept, "--user", "eve", "--out", tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def sweep_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "swept"
    folder.mkdir()
    point = {"metrics": {"accuracy": 0.5}}
    scores = {"task": "lamp-2", "base": "b", "seeds": [1], "people": 2, "queries": 2, "methods": {"1": point}}
    (folder / "scores.json").write_text(json.dumps({**scores, "sweep": {"over": "top-k", "method": "mta"}}))
    return folder


def test_what_is_no_sweep_no_growth_and_nobody_is_refused(finished_run: Path, tmp_path: Path) -> None:
    words = ("report", finished_run, "--out", tmp_path / "page.html")
    assert "are not of a sweep" in refused(*words, "--sweep", finished_run)
    assert "growth.json" in refused(*words, "--growth", finished_run / "scores.json")
    assert "is a sweep, whose rows are points" in refused(
        "report", sweep_folder(tmp_path), "--out", tmp_path / "page.html"
    )
    assert "more than one run lamp-2" in refused(*words, finished_run)
    assert "user 'zoe' was asked nothing in" in refused(*words, "--user", "zoe")
    assert not (tmp_path / "page.html").exists()
