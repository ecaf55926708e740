"""A whole run in one folder: what it leaves behind, what a second call reuses, what it refuses."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta.adapter_files import load_adapter
from mta.bank import load_bank
from mta.base_model import load_base_model
from mta.baselines.methods import methods_for
from mta.config import (
    QUERY_VALUE,
    MergeConfig,
)
from mta.data.splits import answers_in_own_history
from mta.errors import ConfigError, DataError, ModelError, NotFound
from mta.evaluation.export import load_user
from mta.evaluation.formats import format_score
from mta.evaluation.predict import predict
from mta.evaluation.restore import read_settings
from mta.evaluation.run import RunResult, run
from mta.evaluation.run_config import DEFAULT_METHODS, RunConfig
from mta.evaluation.table import markdown_comparisons, markdown_slices
from mta.files import read_json
from mta.lora.adapter import recipe
from mta.merging import merge_cat, merge_distance
from mta.personalize import Personalized, renderer
from mta.progress import Step
from mta.records import User
from mta.tasks import TASKS, get_task
from mta.user_rows import user_rows
from small_run import RUN, RUN_TRAIN, small_world
from small_world import Heard

METHODS = (
    "base",
    "majority",
    "nearest",
    "population",
    "adapt-only",
    "merged-only",
    "merged-only-linear",
    "mta",
)
CONFIG = replace(RUN, methods=METHODS)
ANSWERED = {name for name in METHODS if name not in ("majority", "nearest")}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def first(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(*small_world(), CONFIG, tmp_path_factory.mktemp("run") / "first", notes={"command": "in a test"})


def timeless(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores without the times in the run card."""
    return {**scores, "run": {key: value for key, value in scores["run"].items() if "seconds" not in key}}


def without_costs_of_answers(scores: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in two runs that both trained and answered: everything but times."""
    methods = {
        name: {key: value for key, value in method.items() if not key.endswith("_seconds")}
        for name, method in scores["methods"].items()
    }
    return {**timeless(scores), "methods": methods}


# what it leaves behind --------------------------------------------------------------------------------------------


def test_the_folder_holds_every_part(first: RunResult) -> None:
    names = {path.relative_to(first.folder).as_posix() for path in first.folder.rglob("*") if path.is_file()}
    assert names >= {
        "config.json", "matches.json", "predictions.jsonl", "scores.json", "table.md", "table.csv", "report.html",
        "bank/bank.json", "adapters/mta/target-000.safetensors", "adapters/adapt-only/target-000.safetensors",
        "adapters/population/population.safetensors",
        *(f"adapters/{name}.json" for name in ("mta", "adapt-only", "merged-only", "merged-only-linear")),
    }  # fmt: skip
    assert {name for name in names if name.startswith("predictions/")} == {f"predictions/{m}.json" for m in ANSWERED}
    assert not [name for name in names if name.endswith(".tmp") or "unfinished" in name]
    assert read_json(first.folder / "scores.json") == first.scores
    page = (first.folder / "table.md").read_text()
    for part in (first.table, markdown_comparisons(first.scores), markdown_slices(first.scores)):
        assert part.strip() in page


def test_every_method_that_means_something_is_scored_on_every_query(first: RunResult) -> None:
    scores = first.scores
    assert list(scores["methods"]) == list(METHODS)
    assert (scores["task"], scores["base"], scores["seeds"]) == ("lamp-3", "tiny-random", [42])
    assert (scores["people"], scores["queries"]) == (3, 9)
    for name, method in scores["methods"].items():
        assert {"mae", "rmse"} <= set(method["metrics"])
        assert ("nll" in method["metrics"]) == (name in ANSWERED)
    rows = [json.loads(line) for line in (first.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * 9
    golds = {(user.user_id, query.query_id): query.gold for user in small_world()[1] for query in user.queries}
    assert {(row["user_id"], row["query_id"]) for row in rows} == set(golds)
    assert all(row["gold"] == golds[row["user_id"], row["query_id"]] for row in rows)
    assert {(pair["a"], pair["b"]) for pair in scores["comparisons"]} == {
        ("mta", other) for other in scores["methods"] if other != "mta"
    }
    slices = scores["slices"]
    assert set(slices) == {
        "history length", "similarity to the nearest anchor", "text in an anchor's history",
        "text in a pool user's history",
    }  # fmt: skip
    for partition in slices.values():
        assert sum(part["queries"] for part in partition.values()) == 9


def test_scored_metrics_are_those_of_the_written_predictions(first: RunResult) -> None:
    rows = [json.loads(line) for line in (first.folder / "predictions.jsonl").read_text().splitlines()]
    for name in ("base", "mta", "majority"):
        mine = [row for row in rows if row["method"] == name]
        metrics = first.scores["methods"][name]["metrics"]
        if name != "majority":
            assert metrics["nll"] == pytest.approx(sum(row["nll"] for row in mine) / len(mine))
        else:
            assert metrics["mae"] == pytest.approx(sum(abs(float(r["text"]) - float(r["gold"])) for r in mine) / 9)


def test_costs_per_user(first: RunResult) -> None:
    methods = first.scores["methods"]
    base = load_base_model("tiny-random", device="cpu")
    own_bytes = 4 * sum(d_in + d_out for d_out, d_in in base.shapes(QUERY_VALUE).values())
    updates = sum(2 * -(-len(user.history) // 3) for user in small_world()[1]) / 3
    for name in ("mta", "adapt-only"):
        assert methods[name]["updates_per_user"] == pytest.approx(updates)
        assert methods[name]["adapter_bytes_per_user"] == own_bytes
    for name in ("base", "majority", "merged-only", "population"):
        assert methods[name]["updates_per_user"] == 0
        assert not methods[name]["adapter_bytes_per_user"]


def test_matches_name_anchors_weights_and_how_far_the_merges_are_apart(first: RunResult) -> None:
    bank = load_bank(first.folder / "bank")
    rows = read_json(first.folder / "matches.json")
    assert [row["user_id"] for row in rows] == [user.user_id for user in small_world()[1]]
    for row in rows:
        assert len(row["anchor_ids"]) == 2
        assert set(row["anchor_ids"]) <= set(bank.anchor_ids)
        assert sum(row["weights"]) == pytest.approx(1.0)
        apart = merge_distance([bank.adapter(name) for name in row["anchor_ids"]], row["weights"])
        assert row["cat_vs_linear"] == pytest.approx({"relative": apart.relative, "cosine": apart.cosine})


def test_merged_only_answers_come_from_the_anchors_alone(first: RunResult) -> None:
    """Spot check through every part: bank, match, merge, prompt, forward pass, file."""
    base, task = load_base_model("tiny-random", device="cpu"), get_task("lamp-3")
    bank = load_bank(first.folder / "bank", base=base)
    match = read_json(first.folder / "matches.json")[1]
    user = small_world()[1][1]
    merged = recipe(merge_cat([bank.adapter(name) for name in match["anchor_ids"]], match["weights"]))
    one = Personalized(user, task, merged, renderer(task, CONFIG.bank.prompts), CONFIG.bank.prompts)
    rows = predict([one], base=base, engine=CONFIG.engine).rows
    saved = read_json(first.folder / "predictions" / "merged-only.json")["predictions"]
    mine = [row for row in saved if row["user_id"] == user.user_id]
    assert [row["text"] for row in mine] == [row.text for row in rows]
    assert [row["nll"] for row in mine] == pytest.approx([row.nll for row in rows], abs=1e-5)


def test_config_and_card_say_what_decided_the_run(first: RunResult) -> None:
    saved = read_json(first.folder / "config.json")
    base = load_base_model("tiny-random", device="cpu")
    assert saved["base_fingerprint"] == base.fingerprint
    assert saved["config"]["bank"]["train"]["rank"] == 2
    assert "torch" in saved["versions"]
    card = first.scores["run"]
    assert (card["command"], card["pool users"], card["target users"]) == ("in a test", 6, 3)
    assert card["anchors asked / kept"] == f"3 / {len(load_bank(first.folder / 'bank').anchors)}"
    assert card["queries answered in the user's own history"] == len(answers_in_own_history(small_world()[1]))
    assert card["settings"] == saved["config"]


def test_population_saw_as_many_tokens_as_the_anchors(first: RunResult) -> None:
    _, note = load_adapter(first.folder / "adapters" / "population" / "population.safetensors")
    anchors = sum(anchor.tokens for anchor in load_bank(first.folder / "bank").anchors)
    assert note["tokens"] == pytest.approx(anchors, rel=0.1)
    assert first.scores["run"]["anchor tokens trained"] == anchors


def test_nothing_leaves_the_folder_but_vectors(first: RunResult) -> None:
    assert {path.name for path in first.folder.parent.iterdir()} == {"first"}


# a second call ----------------------------------------------------------------------------------------------------


def copied(first: RunResult, folder: Path) -> Path:
    shutil.copytree(first.folder, folder)
    return folder


def test_the_same_call_again_reuses_everything(first: RunResult, tmp_path: Path) -> None:
    folder = copied(first, tmp_path / "run")
    heard = Heard()
    again = run(*small_world(), CONFIG, folder, notes={"command": "in a test"}, progress=heard)
    assert heard.trained() == set()
    assert not [stage for stage in heard.stages if stage.startswith("answers of")]
    assert timeless(again.scores) == timeless(first.scores)
    assert (folder / "predictions.jsonl").read_bytes() == (first.folder / "predictions.jsonl").read_bytes()


def test_a_run_elsewhere_gives_the_same_scores(first: RunResult, tmp_path: Path) -> None:
    other = run(*small_world(), CONFIG, tmp_path / "run", notes={"command": "in a test"})
    assert without_costs_of_answers(other.scores) == without_costs_of_answers(first.scores)


class Stopped(Exception):
    """Stands for a kill."""


class Fuse:
    """A `progress` that stops the run at its n-th step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Step]:
        def step(done: int, total: int) -> None:
            self.left -= 1
            if self.left <= 0:
                raise Stopped

        yield step


def test_a_run_cut_again_and_again_ends_with_the_same_scores(first: RunResult, tmp_path: Path) -> None:
    lives = 0
    while lives < 40:
        lives += 1
        try:
            done = run(*small_world(), CONFIG, tmp_path / "run", notes={"command": "in a test"}, progress=Fuse(9))
        except Stopped:
            continue
        break
    assert 3 < lives < 40
    assert without_costs_of_answers(done.scores) == without_costs_of_answers(first.scores)


def test_changed_adaptation_trains_and_answers_only_what_it_touches(first: RunResult, tmp_path: Path) -> None:
    folder = copied(first, tmp_path / "run")
    changed = replace(CONFIG, adapt=replace(CONFIG.adapt, lr=3e-2))
    heard = Heard()
    second = run(*small_world(), changed, folder, progress=heard)
    assert heard.trained() == {"adaptation"}
    assert {stage for stage in heard.stages if "answers" in stage} == {"answers of adapt-only", "answers of mta"}
    fresh = run(*small_world(), changed, tmp_path / "fresh")
    assert without_costs_of_answers(second.scores) == without_costs_of_answers(fresh.scores)
    nll = {name: second.scores["methods"][name]["metrics"]["nll"] for name in ANSWERED}
    before = {name: first.scores["methods"][name]["metrics"]["nll"] for name in ANSWERED}
    assert {name for name in nll if nll[name] != before[name]} == {"adapt-only", "mta"}


CHANGES = {
    "seed of the bank": replace(CONFIG, bank=replace(CONFIG.bank, train=replace(RUN_TRAIN, seed=1))),
    "prompt": replace(CONFIG, bank=replace(CONFIG.bank, prompts=replace(CONFIG.bank.prompts, history_k=0))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_bank_or_prompt_reuses_nothing_stale(first: RunResult, tmp_path: Path, name: str) -> None:
    second = run(*small_world(), CHANGES[name], copied(first, tmp_path / "run"))
    fresh = run(*small_world(), CHANGES[name], tmp_path / "fresh")
    assert without_costs_of_answers(second.scores) == without_costs_of_answers(fresh.scores)
    assert second.scores["methods"]["mta"]["metrics"]["nll"] != first.scores["methods"]["mta"]["metrics"]["nll"]


def test_damaged_answers_are_given_again(first: RunResult, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = copied(first, tmp_path / "run")
    for name, text in (("mta", "{"), ("base", "[]"), ("population", "null")):
        (folder / "predictions" / f"{name}.json").write_text(text)
    edited = folder / "predictions" / "merged-only.json"
    edited.write_text(re.sub(r'"gold": "\d"', '"gold": "1"', edited.read_text()))
    heard = Heard()
    again = run(*small_world(), CONFIG, folder, notes={"command": "in a test"}, progress=heard)
    assert f"{edited} is damaged or was edited" in caplog.text
    wanted = {"answers of mta", "answers of base", "answers of population", "answers of merged-only"}
    assert {stage for stage in heard.stages if "answers" in stage} == wanted
    assert without_costs_of_answers(again.scores) == without_costs_of_answers(first.scores)


def test_changed_targets_are_answered_again(first: RunResult, tmp_path: Path) -> None:
    pool, targets = small_world()
    other = replace(targets[0].queries[0], gold=next(x for x in "12345" if x != targets[0].queries[0].gold))
    targets[0] = replace(targets[0], queries=(other, *targets[0].queries[1:]))
    heard = Heard()
    run(pool, targets, CONFIG, copied(first, tmp_path / "run"), progress=heard)
    assert {stage for stage in heard.stages if "answers" in stage} == {f"answers of {name}" for name in ANSWERED}
    assert heard.trained() == set(), "golds do not decide what is trained"


def test_a_folder_of_another_task_is_refused(first: RunResult, tmp_path: Path) -> None:
    folder = copied(first, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run of task 'lamp-3', not 'lamp-4'"):
        run(*small_world("lamp-4"), replace(CONFIG, task_id="lamp-4", methods=("base",)), folder)
    assert read_json(folder / "config.json") == read_json(first.folder / "config.json")


def test_scores_of_other_settings_are_not_replaced_without_a_word(
    first: RunResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(first, tmp_path / "run")
    run(*small_world(), replace(CONFIG, methods=("base", "majority")), folder)
    assert "no longer has nearest" in caplog.text
    assert "their answers stay" in caplog.text
    assert "other settings" not in caplog.text
    run(*small_world(), replace(CONFIG, methods=("base",), top_k=1), folder)
    assert f"{folder} holds scores of other settings, which will be replaced: top_k 2 -> 1" in caplog.text


def test_a_text_task_has_its_own_controls(tmp_path: Path) -> None:
    config = replace(CONFIG, task_id="lamp-4", methods=("base", "nearest", "lead"))
    done = run(*small_world("lamp-4"), config, tmp_path / "run")
    assert list(done.scores["methods"]) == ["base", "nearest", "lead"]
    assert {"rouge_1", "rouge_l"} <= set(done.scores["methods"]["lead"]["metrics"])


# what it refuses --------------------------------------------------------------------------------------------------


def refused(pool: list[User], targets: list[User], folder: Path, config: RunConfig = CONFIG) -> str:
    with pytest.raises((DataError, ConfigError, NotFound)) as caught:
        run(pool, targets, config, folder)
    assert not [path for path in folder.rglob("*") if path.is_file()], "it should be refused before a file is written"
    return str(caught.value)


def test_a_target_in_the_pool_is_refused(tmp_path: Path) -> None:
    pool, targets = small_world()
    assert "not different people" in refused([*pool, targets[0]], targets, tmp_path)
    under_another_name = replace(targets[0], user_id="somebody else")
    assert "not different people" in refused([*pool, under_another_name], targets, tmp_path)


def test_targets_that_cannot_be_scored_are_refused(tmp_path: Path) -> None:
    pool, targets = small_world()
    ann = targets[0]
    assert "no target users" in refused(pool, [], tmp_path)
    assert "empty history" in refused(pool, [replace(ann, history=())], tmp_path)
    assert "no target user has a query" in refused(pool, [replace(ann, queries=())], tmp_path)
    unknown = replace(ann, queries=(replace(ann.queries[0], gold=None),))
    assert f"{ann.queries[0].query_id!r} of user {ann.user_id!r} has no gold answer" in refused(
        pool, [unknown], tmp_path
    )


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert "unknown method 'mtaa'" in refused(*small_world(), tmp_path, replace(CONFIG, methods=("mtaa",)))
    assert "unknown task" in refused(*small_world(), tmp_path, replace(CONFIG, task_id="lamp-9"))
    small = replace(CONFIG, bank=replace(CONFIG.bank, anchors=replace(CONFIG.bank.anchors, bank_size=7)))
    assert "bank_size asks for 7 clusters, but the pool has 6 users" in refused(*small_world(), tmp_path, small)
    for top_k in (0, 4):
        message = refused(*small_world(), tmp_path, replace(CONFIG, top_k=top_k))
        assert f"top_k is {top_k} but the bank will have at most 3 anchors" in message
    narrow = replace(CONFIG, adapt=replace(CONFIG.adapt, target_modules=("v_proj",)))
    assert "which change q_proj, but adapt.target_modules is v_proj" in refused(*small_world(), tmp_path, narrow)


@pytest.mark.parametrize("task_id", TASKS)
def test_default_methods_hold_the_controls_of_every_task(task_id: str) -> None:
    found = methods_for(get_task(task_id), DEFAULT_METHODS)
    control = "lead" if get_task(task_id).kind == "text" else "majority"
    assert {"base", control, "nearest", "population", "adapt-only", "merged-only", "mta"} <= set(found)
    assert not {"lead", "majority"} - {control} & set(found)
    assert methods_for(get_task(task_id), ["mta", "base", "mta"]) == ["mta", "base"]


# what it says -----------------------------------------------------------------------------------------------------


def test_records_say_what_each_method_was_merged_from(first: RunResult) -> None:
    checksum = load_bank(first.folder / "bank").checksum
    rows = {row["user_id"]: row["anchor_ids"] for row in read_json(first.folder / "matches.json")}
    for name, mode, own in (("mta", "cat", 3), ("merged-only", "cat", 0), ("merged-only-linear", "linear", 0)):
        settings = read_settings(first.folder / "adapters", name)
        assert (settings.bank_checksum, settings.merge.mode, len(settings.users)) == (checksum, mode, own)
        assert {user: list(match.anchor_ids) for user, match in settings.matches.items()} == rows
    assert read_settings(first.folder / "adapters", "adapt-only").matches == {}


def test_prompts_that_were_cut_are_counted_and_said(tmp_path: Path) -> None:
    prompts = replace(CONFIG.bank.prompts, history_words=40, max_tokens=420)
    config = replace(CONFIG, bank=replace(CONFIG.bank, prompts=prompts), methods=("base", "population", "mta"))
    pool, targets = small_world()
    done = run(pool, targets, config, tmp_path / "run")
    tokens, task = load_base_model("tiny-random", device="cpu").tokens, get_task("lamp-3")
    rows = {user.user_id: user_rows(tokens, task, user, train=config.adapt, prompts=prompts) for user in pool + targets}
    anchors = load_bank(tmp_path / "run" / "bank").anchor_ids
    cut = {
        "base": 0,
        "population": sum(rows[name].cut_rows for name in anchors),
        "mta": sum(rows[user.user_id].cut_rows for user in targets),
    }
    assert min(cut["population"], cut["mta"]) > 0
    answered = read_json(tmp_path / "run" / "predictions" / "mta.json")["cut_prompts"]
    assert answered > 0
    for name, method in done.scores["methods"].items():
        assert (method["cut_prompts"], method["cut_training_prompts"]) == (answered, cut[name])
    said = f"mta {answered} in answering and {cut['mta']} in training"
    assert done.scores["run"]["prompts cut to fit the model"].endswith(said)
    assert f"{said}." in done.table
    again = run(*small_world(), config, tmp_path / "run")
    assert timeless(again.scores) == timeless(done.scores)


def test_the_card_says_what_the_population_control_learned_from(first: RunResult, tmp_path: Path) -> None:
    same = "trained on the anchors' examples, for as many tokens as all anchors together"
    assert first.scores["run"]["population control"] == same
    bank = replace(CONFIG.bank, population_beneath=True, population_train=RUN_TRAIN)
    done = run(*small_world(), replace(CONFIG, bank=bank, methods=("base", "population")), tmp_path / "run")
    said = done.scores["run"]["population control"]
    assert said.startswith("trained on the examples of everybody in the pool but judges, for as many tokens as all")
    assert run(*small_world(), replace(CONFIG, methods=("base",)), tmp_path / "base").scores["run"][
        "population control"
    ] == ("not run")


def test_scores_that_are_no_numbers_name_the_method_and_the_user(first: RunResult, tmp_path: Path) -> None:
    folder = copied(first, tmp_path / "run")
    config = replace(CONFIG, merge=MergeConfig(scale=1e300), methods=("base", "merged-only"))
    with pytest.raises(
        ModelError, match=r"'merged-only' gave user 'target-000' scores that are not finite .* lower the"
    ):
        run(*small_world(), config, folder)
    for name in ("scores.json", "predictions/merged-only.json", "adapters/merged-only.json", "predictions.jsonl"):
        assert (folder / name).read_bytes() == (first.folder / name).read_bytes()


# seeds ------------------------------------------------------------------------------------------------------------


def test_repeated_runs_are_pooled_and_each_is_the_run_alone(tmp_path: Path) -> None:
    names = ("base", "majority", "merged-only", "mta")
    config = replace(CONFIG, methods=names, seeds=(5, 6))
    both = run(*small_world(), config, tmp_path / "both")
    assert both.scores["seeds"] == [5, 6]
    for place, seed in enumerate((5, 6)):
        alone = run(*small_world(), replace(CONFIG, methods=names).seeded(seed), tmp_path / f"alone-{seed}")
        for name in ("merged-only", "mta"):
            nll = alone.scores["methods"][name]["metrics"]["nll"]
            assert both.scores["methods"][name]["by_seed"]["nll"][place] == pytest.approx(nll)
    assert both.scores["methods"]["mta"]["seed_sd"]["nll"] > 0
    assert both.scores["queries"] == alone.scores["queries"]
    assert not (tmp_path / "both" / "seed-6" / "predictions" / "base.json").exists(), "nothing in it depends on a seed"


@pytest.mark.parametrize("form", ["core", "coefficients+lora"])
def test_compact_parts_are_run_kept_and_loaded_like_adapters(tmp_path: Path, form: str) -> None:
    """Rows without anything beneath train an adapter; what is loaded gives the answers of the run."""
    config = replace(CONFIG, methods=("adapt-only", "population-adapt", "mta"), adapt=replace(CONFIG.adapt, form=form))
    pool, targets = small_world()
    scores = run(pool, targets, config, tmp_path / "run").scores["methods"]
    plain = run(pool, targets, replace(config, adapt=CONFIG.adapt), tmp_path / "plain").scores["methods"]
    assert scores["adapt-only"]["metrics"] == plain["adapt-only"]["metrics"]
    assert scores["mta"]["metrics"]["nll"] != plain["mta"]["metrics"]["nll"]
    if form == "core":
        assert scores["mta"]["adapter_bytes_per_user"] < plain["mta"]["adapter_bytes_per_user"]
    base = load_base_model("tiny-random")
    people = [load_user(user, run=tmp_path / "run", base=base) for user in targets]
    again = predict(people, base=base, engine=config.engine).rows
    kept = {
        row["query_id"]: row["nll"] for row in read_json(tmp_path / "run" / "predictions" / "mta.json")["predictions"]
    }
    assert {row.query_id: row.nll for row in again} == pytest.approx(kept, abs=1e-4)


def test_repeated_runs_continue_and_reuse(tmp_path: Path) -> None:
    config = replace(CONFIG, methods=("base", "mta"), seeds=(5, 6))
    first = run(*small_world(), config, tmp_path / "run")
    heard = Heard()
    with pytest.raises(ConfigError, match="holds a run repeated under several seeds"):
        run(*small_world(), replace(config, seeds=()), tmp_path / "run")
    (target, *_), base = small_world()[1], load_base_model("tiny-random")
    with pytest.raises(ConfigError, match=r"for example .*seed-5"):
        load_user(target, run=tmp_path / "run", base=base)
    assert load_user(target, run=tmp_path / "run" / "seed-6", base=base).adapter is not None
    again = run(*small_world(), replace(config, seeds=(5, 6, 7)), tmp_path / "run", progress=heard)
    assert heard.stages.count("adaptation") == 3
    assert sum(stage == "answers of mta" for stage in heard.stages) == 1
    assert again.scores["methods"]["mta"]["by_seed"]["nll"][:2] == first.scores["methods"]["mta"]["by_seed"]["nll"]


def test_some_methods_may_answer_under_the_first_seed_only(tmp_path: Path) -> None:
    config = replace(CONFIG, methods=("base", "adapt-only", "merged-only", "mta"), seeds=(5, 6), once=("adapt-only",))
    scores = run(*small_world(), config, tmp_path / "run").scores
    seeds = {name: method["seeds"] for name, method in scores["methods"].items()}
    assert seeds == {"base": [], "adapt-only": [5], "merged-only": [5, 6], "mta": [5, 6]}
    assert not (tmp_path / "run" / "seed-6" / "adapters" / "adapt-only").exists()
    assert "adapt-only" in {row["b"] for row in scores["comparisons"]}
    with pytest.raises(NotFound, match="unknown method 'mtaa'"):
        run(*small_world(), replace(config, once=("mtaa",)), tmp_path / "other")


def test_answers_of_the_released_scripts_are_others_and_scored_twice(first: RunResult, tmp_path: Path) -> None:
    folder = copied(first, tmp_path / "run")
    heard = Heard()
    scores = run(*small_world(), replace(CONFIG, answers="released"), folder, progress=heard).scores
    assert "answers of mta" in heard.stages, "answers of another form are not reused"
    assert scores["released"].keys() == scores["methods"].keys()
    assert set(scores["released"]["mta"]) == {"mae", "rmse"}
    assert "released" not in first.scores
    shown = format_score(scores["released"]["mta"]["mae"])
    assert f"| mta | {shown} |" in (folder / "table.md").read_text()
    assert re.search(rf'<th scope="row">mta</th><td>{shown}</td>', (folder / "report.html").read_text())
    assert "authors' scripts score" not in (first.folder / "report.html").read_text()
    with pytest.raises(ConfigError, match="answers is 'mine'; it must be official or released"):
        replace(CONFIG, answers="mine")


def metrics_of(methods: Sequence[str], folder: Path) -> dict[str, dict[str, float]]:
    """Run these methods in this order; every pool user can judge a label prior."""
    pool, targets = small_world()
    asked = [replace(user, queries=(replace(targets[0].queries[0], gold="4"),)) for user in pool]
    scores = run(asked, targets, replace(CONFIG, methods=tuple(methods)), folder).scores["methods"]
    assert list(scores) == list(methods)
    return {name: method["metrics"] for name, method in scores.items()}


EVERY_ROW = methods_for(get_task("lamp-3"), ["tables", "mta-search", "oppu-k0-task"])
MIXED = random.Random(0).sample(EVERY_ROW, len(EVERY_ROW))
ALONE = ("oppu-task", "per-pcs", "proper", "population-adapt", "swapped-user", "mta+prior")
"""Rows that stand on what others train as well."""


@pytest.fixture(scope="module")
def together(own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return metrics_of(EVERY_ROW, tmp_path_factory.mktemp("together"))


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(EVERY_ROW[::-1], id="backwards"),
        pytest.param(MIXED[: len(MIXED) // 2], id="one half"),
        pytest.param(MIXED[len(MIXED) // 2 :], id="other half"),
        *(pytest.param([name], id=name, marks=[] if name in ALONE else pytest.mark.slow) for name in EVERY_ROW),
    ],
)
def test_methods_alone_in_any_subset_and_order_score_the_same(
    tmp_path: Path, together: dict[str, dict[str, float]], order: list[str]
) -> None:
    """No method may depend on another having run before it, or find its files."""
    assert metrics_of(order, tmp_path) == {name: together[name] for name in order}


def test_rows_that_need_another_person_are_left_out_for_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool, targets = small_world()
    done = run(pool, targets[:1], replace(CONFIG, methods=("base", "swapped-user")), tmp_path / "one")
    assert list(done.scores["methods"]) == ["base"]
    assert "left out swapped-user" in caplog.text
    with pytest.raises(ConfigError, match="no method is left to run"):
        run(pool, targets[:1], replace(CONFIG, methods=("swapped-user",)), tmp_path / "none")
    assert not (tmp_path / "none").exists()
