"""The program as a whole: every example in the help runs, help is quick, errors have the right exit code."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from cli_world import QUICK, QUICK_BANK, film_record, good, mta, refused, write_films
from mta.cli import command as command_module
from mta.cli import options
from mta.cli.command import command
from mta.cli.main import app
from mta.cli.settings import ADAPT_ALONE, Given, Plan
from mta.config import BankConfig, MatchConfig, MergeConfig, TrainConfig
from mta.encoders import load_encoder
from mta.errors import DataError
from mta.presets import PRESETS, find_preset

ORDER = (
    "data personas",
    "data stats",
    "data split",
    "data check",
    "models",
    "anchors",
    "bank build",
    "bank show",
    "match",
    "merge",
    "adapt",
    "generate",
    "evaluate",
    "run",
    "sweep",
    "growth",
    "export",
    "report",
    "demo",
    "bank retire",
    "keys add",
    "keys list",
    "keys revoke",
    "users list",
)
NEEDS_NETWORK = ("data download",)
NEEDS_PEOPLE = ("serve", "users audit", "users delete", "users export")
"""See test_cli_serve.py."""


def test_names_of_options_are_whole_on_a_narrow_screen() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"], terminal_width=80, env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    cut = [line for line in shown.stdout.splitlines() if re.match(r"\W*--[\w-]*…", line)]
    assert "--bank-held-out-share" in shown.stdout
    assert not cut


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with the words that call it."""
    for name, found in group.commands.items():
        words = f"{before} {name}".strip()
        if hasattr(found, "commands"):
            yield from commands(found, words)
        else:
            yield words, found


ALL = dict(commands(typer.main.get_command(app)))


def example(words: str) -> list[str]:
    return shlex.split(ALL[words].epilog.removeprefix("Example:"))


def test_every_command_is_covered_here() -> None:
    assert sorted(ALL) == sorted((*ORDER, *NEEDS_NETWORK, *NEEDS_PEOPLE))


def test_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ORDER:
        first, *rest = example(words)
        assert first == "mta"
        good(*rest)
    for made in ("bank/bank.json", "runs/try/report.html", "exported/target-000/adapter_config.json", "report.html"):
        assert (tmp_path / made).is_file()
    assert (tmp_path / "runs/demo/report.html").is_file()


@pytest.mark.parametrize("words", sorted(ALL))
def test_help_has_an_example_and_explains_every_option(words: str) -> None:
    shown = CliRunner().invoke(app, [*words.split(), "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert "Example:  mta " in shown.stdout
    assert example(words)[: 1 + len(words.split())] == ["mta", *words.split()]
    for parameter in ALL[words].params:
        assert getattr(parameter, "help", None), f"{words} {parameter.name}"


def test_help_loads_no_heavy_library() -> None:
    check = (
        "import sys, typer; from mta.cli.main import app; from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['run', '--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'numpy', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"


def test_version() -> None:
    assert re.fullmatch(r"mta \d+\.\d+\.\d+\n", good("--version").out)


def _failing(error: BaseException) -> typer.Typer:
    program = typer.Typer()

    @command(program, "fail", example="mta fail")
    def fail() -> None:
        """Fail."""
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("bad\ndata"), 2, "error: bad data"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("1/0"), 1, "unexpected error: ZeroDivisionError: 1/0; this is a defect"),
    ],
)
def test_exit_codes_and_tracebacks(error: BaseException, code: int, said: str) -> None:
    short = CliRunner().invoke(_failing(error), [])
    assert (short.exit_code, short.stdout) == (code, "")
    assert said in short.stderr
    assert "Traceback" not in short.stderr
    long = CliRunner().invoke(_failing(error), ["--debug"])
    assert long.exit_code == code
    assert "Traceback" in long.stderr


def test_logging_is_put_back_after_a_command() -> None:
    logger = command_module.logging.getLogger("mta")
    before = (logger.level, logger.handlers[:])
    good("models", "-vv")
    assert (logger.level, logger.handlers) == before


def test_options_override_the_preset_and_the_rest_stays(finished_run: Path) -> None:
    settings = json.loads((finished_run / "config.json").read_text())["config"]
    assert settings["bank"]["anchors"]["bank_size"] == 2
    assert settings["bank"]["train"]["epochs"] == 1
    assert settings["bank"]["match"]["encoder"] == "tiny-random"
    assert settings["bank"]["train"]["lr"] == find_preset("small", "lamp-2").bank.train.lr
    assert settings["adapt"]["rank"] == 4


def test_a_run_that_names_no_preset_is_the_recommended_one(films: Any, tmp_path: Path) -> None:
    small = ("--bank-size", 2, "--min-history", 0, "--bank-epochs", 1, "--adapt-epochs", 1)
    words = ("run", "lamp-2", *films.both, "--base", "tiny-random", *small, "--out", tmp_path / "run")
    scores = good(*words, "--json").json
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    wanted = find_preset("recommended", "lamp-2")
    assert wanted.method in scores["methods"], "the usual rows and its own"
    assert "mta" in scores["methods"]
    assert scores["judged"]["method"] == config["judged"] == wanted.method
    assert config["bank"]["population_beneath"]
    assert config["bank"]["train"]["held_out_share"] == wanted.bank.train.held_out_share
    again = good(*words, "--method", "mta", "--method", "base", "--json").json
    assert again["judged"]["method"] == "mta", "of the rows that are asked for"


def test_run_prints_table_comparisons_and_how_far_the_merges_are_apart(run_copy: Path, films: Any) -> None:
    words = ("run", "lamp-2", *films.both, *QUICK, "--out", run_copy, "--method")
    said = good(*words, "mta", "--method", "majority", "--method", "base").out
    assert "| mta - majority | Acc" in said
    (line,) = [line for line in said.splitlines() if line.startswith("merge cat vs linear: ")]
    assert (
        line.removeprefix("merge cat vs linear: ")
        == json.loads((run_copy / "scores.json").read_text())["run"]["merge cat vs linear"]
    )


def test_rank_keeps_the_scale_of_the_delta(films: Any, tmp_path: Path) -> None:
    words = ("run", "lamp-2", *films.both, *QUICK, "--method", "base", "--adapt-rank", 2, "--out", tmp_path / "run")
    adapt = good(*words, "--json").json["run"]["settings"]["adapt"]
    assert (adapt["rank"], adapt["alpha"]) == (2, 4.0)


def test_frozen_A_own_starts_early_stopping_and_batch_sizes_are_options(films: Any, tmp_path: Path) -> None:
    words = (
        *("--no-bank-train-a", "--no-shared-init", "--bank-batch-size", 3, "--bank-held-out-share", 0.25),
        *("--bank-patience", 2, "--adapt-train-a", "--adapt-batch-size", 1, "--adapt-held-out-share", 0.5),
        *("--adapt-patience", 3, "--population-beneath"),
    )
    run = tmp_path / "run"
    good("run", "lamp-2", *films.both, *QUICK, *words, "--method", "mta", "--out", run)
    settings = json.loads((run / "config.json").read_text())["config"]
    bank, adapt = settings["bank"], settings["adapt"]
    names = ("train_a", "batch_size", "held_out_share", "patience")
    assert [bank["train"][name] for name in names] == [False, 3, 0.25, 2]
    assert [bank["population_train"][name] for name in names] == [True, 3, 0.25, 2]
    assert [adapt[name] for name in names] == [True, 1, 0.5, 3]
    assert (bank["shared_init"], bank["population_beneath"]) == (False, True)
    anchors = json.loads((run / "bank" / "bank.json").read_text())["anchors"]
    assert [len(anchor["held_out_losses"]) for anchor in anchors] == [2, 2]


def test_a_switch_that_is_not_given_leaves_the_setting_alone_and_off_is_off() -> None:
    train = TrainConfig(allow_proxy=True, train_a=False)
    plan = Plan(bank=BankConfig(), match=MatchConfig(), merge=MergeConfig(), adapt=train)
    switches = [setting for setting in ADAPT_ALONE if setting.field in ("allow_proxy", "train_a")]
    assert Given(dict.fromkeys(switches)).apply(plan) == plan
    changed = Given({setting: setting.field == "train_a" for setting in switches}).apply(plan).adapt
    assert (changed.allow_proxy, changed.train_a) == (False, True)


def test_seed_reaches_every_stage(films: Any, tmp_path: Path) -> None:
    words = ("run", "lamp-2", *films.both, *QUICK, "--method", "base", "--seed", 7, "--out", tmp_path / "run")
    settings = good(*words, "--json").json["run"]["settings"]
    found = [settings["adapt"], settings["bank"]["train"], settings["bank"]["anchors"]]
    assert [part["seed"] for part in found] == [7, 7, 7]


def test_same_command_again_trains_nothing_and_says_the_same(run_copy: Path, films: Any) -> None:
    files = {p: p.stat().st_mtime_ns for p in run_copy.rglob("*.safetensors")}
    words = ("run", "lamp-2", *films.both, *QUICK, "--method", "mta", "--method", "base", "--out", run_copy)
    before = json.loads((run_copy / "scores.json").read_text())
    again = good(*words, "--json").json
    assert again["methods"]["mta"]["metrics"] == before["methods"]["mta"]["metrics"]
    assert {p: p.stat().st_mtime_ns for p in run_copy.rglob("*.safetensors")} == files


def test_stages_one_by_one_answer_like_the_run(finished_run: Path, films: Any, tmp_path: Path) -> None:
    bank, adapters = finished_run / "bank", tmp_path / "adapters"
    common = ("--bank", bank, "--targets", films.targets)
    good("adapt", *common, *QUICK[-4:], "--out", adapters)
    runs = {"own": adapters, "run": finished_run / "adapters"}
    lines = {}
    for name, folder in runs.items():
        good("generate", *common, "--adapters", folder, "--out", tmp_path / f"{name}.jsonl")
        lines[name] = (tmp_path / f"{name}.jsonl").read_text().splitlines()
    whole = [line for line in (finished_run / "predictions.jsonl").read_text().splitlines() if '"mta"' in line]
    assert lines["own"] == lines["run"]
    assert list(map(json.loads, lines["own"])) == list(map(json.loads, whole))


def test_scores_of_a_file_are_those_of_the_run(finished_run: Path, films: Any) -> None:
    words = ("evaluate", "--predictions", finished_run / "predictions.jsonl", "--task", "lamp-2", "--json")
    found = good(*words, "--targets", films.targets).json
    kept = json.loads((finished_run / "scores.json").read_text())
    assert found["methods"].keys() == kept["methods"].keys()
    for name, method in found["methods"].items():
        assert method["metrics"] == pytest.approx(kept["methods"][name]["metrics"])
        assert method["ci95"] == kept["methods"][name]["ci95"]
    assert (found["judged"], found["comparisons"]) == (kept["judged"], kept["comparisons"])
    against = good(*words, "--judged", "base").json["comparisons"]
    assert {row["a"] for row in against} == {"base"}
    assert "unknown method to compare 'magic'" in refused(*words, "--judged", "magic")


def test_a_terminal_shows_the_marks_of_the_table(finished_run: Path) -> None:
    words = ("evaluate", "--predictions", str(finished_run / "predictions.jsonl"), "--task", "lamp-2")
    there, here = pty.openpty()
    environment = {**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    subprocess.run(
        [sys.executable, "-c", "from mta.cli.main import main; main()", *words],
        stdout=here,
        env=environment,
        check=True,
        timeout=120,
    )
    os.close(here)
    shown = b""
    with contextlib.suppress(OSError):  # how the end of a pseudo-terminal is told on Linux
        while part := os.read(there, 65536):
            shown += part
    assert re.search(rb"\x1b\[1m\d\.\d{3}", shown)
    assert b"Bold: best point estimate. Underlined: second best." in b" ".join(shown.split())


def test_official_predictions_need_golds_and_are_scored(tmp_path: Path) -> None:
    golds = {"q1": "comedy", "q2": "sci-fi", "q3": "classic", "q4": "romance"}
    said = {**golds, "q4": "comedy"}
    paths = []
    for name, answers in (("preds", said), ("golds", golds)):
        rows = [{"id": key, "output": value} for key, value in answers.items()]
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"task": "LaMP_2", "golds": rows}))
    words = ("evaluate", "--predictions", paths[0], "--task", "lamp-2", "--json")
    assert good(*words, "--golds", paths[1]).json["methods"]["predictions"]["metrics"]["accuracy"] == 0.75
    refused = mta(*words)
    assert refused.code == 2
    assert "--golds" in refused.err


def test_split_gives_files_that_pass_the_check(tmp_path: Path) -> None:
    names = [f"person{number}" for number in range(9)]
    path = write_films(tmp_path / "all_questions.json", [film_record(name) for name in names])
    out = tmp_path / "split"
    report = good(
        *("data", "split", path, "--task", "lamp-2", "--count", 3, "--history-length", 3, "--out", out, "--json")
    ).json
    assert (report["targets"], report["pool"], report["people"]) == (3, 6, 9)
    sides = ("--pool", out / "pool_questions.json", "--targets", out / "target_questions.json")
    good("data", "check", *sides, "--task", "lamp-2")
    leaking = mta("data", "check", "--pool", path, "--targets", sides[3], "--task", "lamp-2", "--json")
    assert leaking.code == 2
    assert len(leaking.json["shared_ids"]) == 3


def test_own_data_with_open_questions_can_be_split(tmp_path: Path) -> None:
    rows = [
        {"user_id": name, "input": f"{name} wonders about {k}", "output": f"{name} thinks {k}"}
        for name in ("ada", "ben", "cleo", "dan")
        for k in ("rain", "snow", "wind")
    ]
    rows += [{"user_id": name, "input": f"What of {name}?"} for name in ("ada", "dan", "eve")]
    path, out = tmp_path / "own.jsonl", tmp_path / "split"
    path.write_text("\n".join(map(json.dumps, rows)))
    words = ("data", "split", path, "--task", "own", "--queries-per-user", 1, "--count", 2, "--history-length", 2)
    report = good(*words, "--out", out, "--json").json
    assert (report["targets"], report["pool"], report["dropped_questions"]) == (2, 3, 3)
    for side in ("pool", "target"):
        asked = json.loads((out / f"{side}_questions.json").read_text())
        outputs = json.loads((out / f"{side}_outputs.json").read_text())
        assert {row["id"] for row in asked if row["input"]} == {row["id"] for row in outputs["golds"]}
    good(
        "data", "check", "--pool", out / "pool_questions.json", "--targets", out / "target_questions.json", *words[3:5]
    )


def test_check_counts_answers_that_stand_in_the_own_history(films: Any, tmp_path: Path) -> None:
    record = film_record("dan")
    record["profile"].append({"id": "again", "description": record["input"].split("description: ")[1], "tag": "comedy"})
    path = write_films(tmp_path / "t_questions.json", [record, film_record("eve")])
    words = ("data", "check", "--pool", films.pool, "--task", "lamp-2", "--targets")
    said = "1 of 2 target questions stand in their own user's history with the answer ('q-dan')"
    assert said in good(*words, path).out
    assert good(*words, path, "--json").json["answers_in_own_history"] == [["dan", "q-dan"]]
    assert "0 of 2 target questions stand" in good(*words, films.targets).out


def test_check_and_evaluate_can_leave_malformed_records_out(finished_run: Path, films: Any, tmp_path: Path) -> None:
    bad = film_record("fay") | {"input": "What is this film?"}
    path = write_films(tmp_path / "t_questions.json", [film_record("dan"), film_record("eve"), bad])
    for words in (
        ("data", "check", "--pool", films.pool, "--task", "lamp-2", "--targets", path),
        ("evaluate", "--predictions", finished_run / "predictions.jsonl", "--task", "lamp-2", "--targets", path),
    ):
        assert "--skip-malformed" in mta(*words).err
        assert "1 records left out" in good(*words, "--skip-malformed").err


def test_stats_count_people_and_items(films: Any) -> None:
    rows = good("data", "stats", films.pool, films.targets, "--task", "lamp-2", "--json").json
    assert [(row["users"], row["people"], row["mean_items"]) for row in rows] == [(3, 3, 4.0), (2, 2, 3.0)]


def test_anchors_say_what_was_asked_and_kept(films: Any, tmp_path: Path) -> None:
    words = ("anchors", "--pool", films.pool, "--task", "lamp-2", "--encoder", "tiny-random", "--bank-size", 3)
    found = good(*words, "--min-history", 3, "--json", "--out", tmp_path / "a.json").json
    assert (found["asked"], found["kept"]) == (3, 3)
    assert json.loads((tmp_path / "a.json").read_text()) == found
    assert "an anchor needs more than 4" in mta(*words, "--min-history", 4).err
    assert "entropy of 9 nats" in refused(*words, "--min-history", 3, "--min-label-entropy", 9)


def test_retired_anchor_is_no_longer_matched(run_copy: Path, films: Any) -> None:
    bank = run_copy / "bank"
    first, second = [row["user_id"] for row in good("bank", "show", bank, "--json").json["anchors"]]
    good("bank", "retire", bank, "--anchor", first)
    rows = good("match", "--bank", bank, "--targets", films.targets, "--json").json
    assert {tuple(row["anchor_ids"]) for row in rows} == {(second,)}
    assert "last anchor" in mta("bank", "retire", bank, "--anchor", second).err


def test_adapters_keep_what_they_were_trained_over_when_an_anchor_retires(
    run_copy: Path, films: Any, tmp_path: Path
) -> None:
    words = ("generate", "--bank", run_copy / "bank", "--targets", films.targets, "--adapters", run_copy / "adapters")
    good(*words, "--out", tmp_path / "before.jsonl")
    anchor = good("bank", "show", run_copy / "bank", "--json").json["anchors"][0]["user_id"]
    good("bank", "retire", run_copy / "bank", "--anchor", anchor)
    good(*words, "--out", tmp_path / "after.jsonl")
    assert (tmp_path / "before.jsonl").read_bytes() == (tmp_path / "after.jsonl").read_bytes()


def test_reference_layout_is_written_on_request(films: Any, tmp_path: Path) -> None:
    words = ("run", "lamp-2", *films.both, *QUICK, "--method", "mta", "--layout", "reference", "--out", tmp_path / "r")
    good(*words)
    assert (
        tmp_path / "r" / "reference" / "dense_retrieval_results" / "movie_tagging" / "matches_results.json"
    ).is_file()


def test_reference_layout_of_a_run_without_its_method_is_refused_at_once(films: Any, tmp_path: Path) -> None:
    words = ("run", "lamp-2", *films.both, *QUICK, "--method", "base", "--layout", "reference", "--out", tmp_path / "r")
    assert "add --method mta" in mta(*words).err
    assert not (tmp_path / "r").exists()


def test_download_passes_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(tasks: list[str], **options: Any) -> list[Path]:
        seen.update(options, tasks=tasks)
        options["on_progress"]("dev_questions.json", 5, 10)
        options["on_progress"]("dev_questions.json", 10, 10)
        options["on_progress"]("dev_outputs.json", 1, None)
        return [tmp_path / "dev_questions.json"]

    monkeypatch.setattr("mta.data.download.download_lamp", fake)
    done = good("data", "download", "lamp-2", "lamp-4", "--split", "dev", "--out", tmp_path, "--time-split")
    assert done.out.strip() == str(tmp_path / "dev_questions.json")
    assert (seen["tasks"], seen["split"], seen["time_split"]) == (["lamp-2", "lamp-4"], "dev", True)


def test_every_preset_can_be_asked_for_by_its_name() -> None:
    choices = get_args(get_args(get_args(options.Preset)[0])[0])
    assert set(choices) == set(PRESETS)


def test_users_without_history_do_not_stop_the_others(films: Any, finished_run: Path, tmp_path: Path) -> None:
    path = write_films(tmp_path / "t_questions.json", [film_record("dan"), film_record("new", items=0)])
    words = ("--bank", finished_run / "bank", "--targets", path)
    found = good("match", *words, "--json")
    assert {row["user_id"] for row in found.json} == {"dan"}
    assert "1 users without history left out; the base model serves them: 'new'" in found.err
    assert "no history items" in refused("match", *words, "--user", "new")


def test_anchors_take_the_encoder_of_a_preset(films: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note_and_load(name: str, **more: Any) -> Any:
        asked.append(name)
        return load_encoder("tiny-random", **more)

    monkeypatch.setattr("mta.encoders.load_encoder", note_and_load)
    for preset in ("small", "paper"):
        words = ("--bank-size", 3, "--min-history", 3, "--preset", preset)
        good("anchors", "--pool", films.pool, "--task", "lamp-2", *words)
    assert asked == ["minilm", find_preset("paper", "lamp-2").bank.anchors.encoder]


def test_every_method_that_scores_labels_can_stand_beside_its_prior(films: Any, tmp_path: Path) -> None:
    asked = ("--method", "base", "--method", "majority", "--method", "mta", "--prior")
    scores = good("run", "lamp-2", *films.both, *QUICK, *asked, "--out", tmp_path / "run", "--json").json
    assert list(scores["methods"]) == ["base", "base+prior", "majority", "mta", "mta+prior"]
    assert scores["methods"]["mta+prior"]["chosen_on_pool"] == [{"prior strength": 1.0}], "one judge is too few"


def test_a_dry_run_says_what_a_bank_would_take_and_trains_nothing(films: Any, tmp_path: Path) -> None:
    asked = ("bank", "build", "--pool", films.pool, "--task", "lamp-2", "--base", "tiny-random", *QUICK_BANK)
    told = good(*asked, "--out", tmp_path / "bank", "--dry-run", "--json").json
    assert not (tmp_path / "bank").exists()
    made = good(*asked, "--out", tmp_path / "bank", "--json").json
    assert (told["asked"], told["anchors"]) == (made["asked"], made["kept"])
    assert told["examples"] == sum(anchor["examples"] for anchor in made["anchors"])
    assert told["updates"] == sum(anchor["updates"] for anchor in made["anchors"])
    assert told["memory"]["weights"] < 10**6 < told["process_bytes"]
    assert "memory of the cpu at the peak" in good(*asked, "--out", tmp_path / "none", "--dry-run").out
