"""Odd input that is right: it must work end to end, and files must stay in their folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_world import ASKED, QUICK, film_record, good, write_films

ODD_IDS = ("a/b", "../../escape", "..", "émoji 🎬", "[bold]red[/]")


def test_odd_user_ids_work_and_stay_inside_the_folder(films: Any, tmp_path: Path) -> None:
    inside = tmp_path / "deep" / "er"
    path = write_films(inside / "t_questions.json", [film_record(name) for name in ODD_IDS])
    data = {*inside.iterdir()}
    run = inside / "run"
    words = ("run", "lamp-2", "--pool", films.pool, "--targets", path, *QUICK, "--method", "mta", "--out", run)
    good(*words)
    for place, name in enumerate(ODD_IDS):
        good("export", run, "--user", name, "--out", run / "exported" / str(place))
    shown = good("match", "--bank", run / "bank", "--targets", path)
    assert "[bold]red[/]" in shown.out
    assert "🎬" in shown.out
    assert len(list((run / "adapters" / "mta").glob("*.safetensors"))) == len(ODD_IDS)
    assert {*inside.iterdir()} == {*data, run}
    assert [*tmp_path.iterdir()] == [tmp_path / "deep"]
    assert [*(tmp_path / "deep").iterdir()] == [inside]


def _paper(name: str, number: int) -> dict[str, str]:
    return {
        "id": f"{name}-{number}",
        "title": f'A "quoted" study {number} of {name}, "really"',
        "abstract": f"What {name} found, {number} times.",
        "citation": f'On "{name}" and {number}',
    }


def _citation_record(name: str) -> dict[str, Any]:
    title = f'The "new" paper of {name} "twice"'
    question = (
        f'For an author who has written the paper with the title "{title}", which reference is related? Just answer '
        f'with [1] or [2] without explanation. [1]: "Is "this" {name}\'s?" [2]: "Or "that"?"'
    )
    return {"id": f"q-{name}", "user_id": name, "input": question, "profile": [_paper(name, k) for k in range(3)]}


def test_citation_titles_with_quotes(tmp_path: Path) -> None:
    files = []
    for side, names in (("pool", ("ada", "ben", "cleo")), ("target", ("dan",))):
        path = write_films(tmp_path / f"{side}_questions.json", [_citation_record(name) for name in names])
        outputs = path.with_name(f"{side}_outputs.json")
        outputs.write_text(outputs.read_text().replace("comedy", "[1]"))
        files += [f"--{side}".replace("target", "targets"), path]
    done = good("run", "lamp-1", *files, *QUICK, "--method", "mta", "--out", tmp_path / "run", "--json")
    assert done.json["queries"] == 1
    assert done.json["run"]["training pairs from"] == ["citation items"]


def test_prompts_longer_than_the_context_are_cut_in_their_history_first_and_counted_everywhere(tmp_path: Path) -> None:
    files = []
    for side, names in (("pool", ("ada", "ben", "cleo")), ("target", ("dan",))):
        records = [film_record(name) for name in names]
        for item in (item for record in records for item in record["profile"]):
            item["description"] += " And so it went on." * 40
        files.append(write_films(tmp_path / f"{side}_questions.json", records))
    pool, targets = files
    bank, run = tmp_path / "bank", tmp_path / "run"
    settings = ("--max-tokens", 1100, "--history-k", 1, "--history-words", 500, "--input-words", 80)
    done = good("bank", "build", "--pool", pool, "--task", "lamp-2", *QUICK[:-4], *settings, "--out", bank)
    assert "6 training prompts of the anchors were cut to fit the model, their history first" in done.err
    common = ("--bank", bank, "--targets", targets)
    done = good("adapt", *common, *QUICK[-4:], "--out", tmp_path / "adapters")
    assert "3 training prompts were cut to fit the model, their history first" in done.err
    done = good("generate", *common, "--adapters", tmp_path / "adapters", "--out", tmp_path / "answers.jsonl")
    assert "1 prompts were cut to fit the model, their history first" in done.err
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1
    words = ("run", "lamp-2", "--pool", pool, "--targets", targets, *QUICK, *settings, "--method", "mta")
    card = good(*words, "--out", run, "--json").json["run"]
    assert "mta" in card["prompts cut to fit the model"]


def test_own_data_from_reading_to_scores(tmp_path: Path) -> None:
    files = []
    for side, names in (("pool", ("ada", "ben", "cleo")), ("targets", ("dan", "eve"))):
        rows = [
            {"user_id": name, "input": f"{name} wonders about {k}", "output": f"{name} thinks {k}"}
            for name in names
            for k in ("rain", "snow", "wind", "sun")
        ]
        files += [f"--{side}", tmp_path / f"{side}.jsonl"]
        files[-1].write_text("\n".join(map(json.dumps, rows)))
    words = ("run", "own", *files, "--queries-per-user", 1, *QUICK, "--adapt-batch-size", 3, "--method", "mta")
    done = good(*words, "--out", tmp_path / "run", "--json")
    assert (done.json["people"], done.json["queries"]) == (2, 2)
    assert done.json["methods"]["mta"]["updates_per_user"] == pytest.approx(1)


def test_caps_are_said_and_recorded(films: Any, tmp_path: Path) -> None:
    done = good(
        *("run", "lamp-2", *films.both, *QUICK, "--method", "base", "--users", 1, "--pool-users", 2),
        *("--out", tmp_path / "run", "--json"),
    )
    assert done.json["people"] == 1
    assert done.json["run"]["capped target users"] == "the first 1 of 2"
    assert done.json["run"]["capped pool users"] == "the first 2 of 3"
    assert "first 1 of 2" in done.err


def test_question_shape_of_these_tests_is_the_tasks_own() -> None:
    from mta.tasks import get_task

    assert get_task("lamp-2").parse_query(f"{ASKED}A heist.") == {"description": "A heist."}
