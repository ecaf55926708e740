"""The file formats page is held against the readers and against the files of a real, tiny run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mta.anchors import DroppedCluster
from mta.base_model import load_base_model
from mta.config import AnchorConfig, BankConfig, MatchConfig, PromptConfig, TrainConfig, from_dict
from mta.data.personas import write_personas
from mta.data.processed import read_processed
from mta.data.read import find_format, read_users
from mta.evaluation.predictions_file import read_predictions
from mta.evaluation.reference_layout import write_reference_layout
from mta.evaluation.reference_results import user_metrics
from mta.evaluation.restore import read_settings
from mta.evaluation.run import run
from mta.evaluation.run_config import RunConfig
from mta.evaluation.scores import MethodRecord, build_scores
from mta.evaluation.scores_file import check_scores
from mta.evaluation.slices import slice_scores, usual_partitions
from mta.evaluation.statistics import standard_deviation
from mta.files import read_json
from mta.lora.peft_format import CONFIG
from mta.records import Prediction
from mta.tasks import TASKS, get_task

PAGE = Path(__file__).resolve().parents[1] / "docs" / "file_formats.md"
BLOCK = re.compile(r"^```(json|jsonl) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {name: (kind, text) for kind, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8"))}


def _values(name: str) -> list[Any]:
    kind, text = BLOCKS[name]
    return [json.loads(text)] if kind == "json" else [json.loads(line) for line in text.splitlines()]


def _file(folder: Path, name: str, block: str) -> Path:
    path = folder / name
    path.write_text(BLOCKS[block][1], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny finished run with a dropped cluster, and its reference layout under `tree`."""
    folder = tmp_path_factory.mktemp("formats")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_personas(folder, task_id="lamp-2", pool=4, targets=2, pool_history=4, target_history=3, target_queries=1)
    task = get_task("lamp-2")
    pool = read_users(folder / "pool_questions.json", task=task).users
    targets = read_users(folder / "target_questions.json", task=task).users
    train = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=1, target_modules=("q_proj",))
    bank = BankConfig(
        prompts=PromptConfig(max_tokens=512),
        anchors=AnchorConfig(bank_size=2, min_history=2, encoder="tiny-random"),
        match=MatchConfig(encoder="tiny-random"),
        train=train,
    )
    config = RunConfig(
        task_id="lamp-2", base="tiny-random", bank=bank, adapt=train, methods=("base", "majority", "mta")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_CACHE", str(folder / "cache"))
        base = load_base_model("tiny-random", device="cpu", dtype="float32")
        run(pool, targets, config, folder / "run", base=base)
    write_reference_layout(folder / "run", folder / "tree", pool=pool, targets=targets, base=base)
    yield folder
    torch.set_num_threads(threads)


def _keys(value: Any) -> set[str]:
    return set(value)


# Inputs ----------------------------------------------------------------------------------------------------------


def test_every_example_parses_and_is_used_by_a_test_below() -> None:
    fences = re.findall(r"^```\S+ \S+$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == len(BLOCKS) == 22
    used = set(re.findall(r'"([\w-]+)"', Path(__file__).read_text(encoding="utf-8")))
    for name in BLOCKS:
        assert _values(name)
        assert name in used


@pytest.mark.parametrize("task_id", ["lamp-1", "lamp-2"])
def test_lamp_examples_are_read_with_their_golds(task_id: str, tmp_path: Path) -> None:
    blocks = {"lamp-1": ("lamp-1-questions", "lamp-1-outputs"), "lamp-2": ("lamp-2-questions", "lamp-2-outputs")}
    questions = _file(tmp_path, "dev_questions.json", blocks[task_id][0])
    _file(tmp_path, "dev_outputs.json", blocks[task_id][1])
    assert find_format(questions) == "lamp"
    (user,) = read_users(questions, task=get_task(task_id), need_golds=True).users
    (record,) = _values(blocks[task_id][0])[0]
    assert user.queries[0].text == record["input"]
    assert user.queries[0].gold == _values(blocks[task_id][1])[0]["golds"][0]["output"]
    assert len(user.history) == len(record["profile"]) + len(record.get("profile_titles_only", []))


def test_the_citation_example_shows_what_the_page_says_of_it(tmp_path: Path) -> None:
    questions = _file(tmp_path, "dev_questions.json", "lamp-1-questions")
    (user,) = read_users(questions, task=get_task("lamp-1")).users
    fields = get_task("lamp-1").parse_query(user.queries[0].text)
    assert fields["title"] == 'On "quoted" titles'
    assert user.user_id == "a7"
    assert [item.time for item in user.history] == ["2014", "2011-05-01"]
    assert user.history[1].item_id == "a7-t0"


def test_processed_examples_are_read(tmp_path: Path) -> None:
    whole = _file(tmp_path, "test_100.json", "processed")
    assert find_format(whole) == "processed"
    (user,) = read_users(whole, task=get_task("lamp-2"), need_golds=True).users
    assert (user.user_id, user.queries[0].gold, len(user.history)) == ("8000101", "classic", 2)
    lines = _file(tmp_path, "anchor_user_data.jsonl", "processed-lines")
    assert find_format(lines) == "processed"
    assert [user.user_id for user in read_users(lines, task=get_task("lamp-4")).users] == ["8000102", "8000103"]


def test_own_example_is_read(tmp_path: Path) -> None:
    path = _file(tmp_path, "mine.jsonl", "own")
    assert find_format(path) == "jsonl"
    ann, bob = read_users(path, task=get_task("own")).users
    assert [item.get("output") for item in ann.history] == ["Any time. Ann", "Monday is fine. Ann"]
    assert [(query.query_id, query.gold) for query in ann.queries] == [("ann:3", None)]
    assert bob.user_id == "bob/lee"
    held = read_users(path, task=get_task("own"), queries_per_user=1).users[0]
    assert ("ann:2", "Monday is fine. Ann") in [(query.query_id, query.gold) for query in held.queries]


def test_answers_are_read_in_both_forms(tmp_path: Path) -> None:
    answers = read_predictions(_file(tmp_path, "predictions.jsonl", "answers"))
    assert [(row.user_id, row.text) for row in answers["mta"]] == [("ann", "comedy"), ("bob", "")]
    golds = _file(tmp_path, "dev_outputs.json", "lamp-2-outputs")
    (row,) = read_predictions(_file(tmp_path, "mine.json", "answers-official"), golds=golds)["predictions"]
    assert (row.query_id, row.gold, row.text) == ("110001", "twist ending", "twist ending")


def test_the_task_table_names_every_task_its_slug_and_fields() -> None:
    rows = {
        cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and len(cells := line.strip("| ").split(" | ")) == 5
    }
    assert rows.keys() >= TASKS.keys()
    for task_id, task in TASKS.items():
        assert rows[task_id][0] == task.slug
        assert all(f"`{field}`" in rows[task_id][1] for field in task.required_fields)


# Outputs ---------------------------------------------------------------------------------------------------------


def test_config(finished: Path) -> None:
    (example,) = _values("config")
    real = read_json(finished / "run" / "config.json")
    assert _keys(example) == _keys(real)
    assert _keys(example["config"]) == _keys(real["config"])
    assert from_dict(RunConfig, example["config"]).adapt.lr == 0.001
    assert _keys(example["versions"]) <= _keys(real["versions"])


def test_matches(finished: Path) -> None:
    (example,) = _values("matches")
    real = read_json(finished / "run" / "matches.json")
    assert _keys(example[0]) == _keys(real[0])
    assert _keys(example[0]["cat_vs_linear"]) == _keys(real[0]["cat_vs_linear"])
    assert sum(example[0]["weights"]) == pytest.approx(1)
    shares = [similarity / sum(example[0]["similarities"]) for similarity in example[0]["similarities"]]
    assert example[0]["weights"] == pytest.approx(shares)


def test_predictions(finished: Path) -> None:
    (example,) = _values("predictions")
    real = read_json(finished / "run" / "predictions" / "mta.json")
    assert _keys(example) == _keys(real)
    assert _keys(example["predictions"][0]) == _keys(real["predictions"][0])
    Prediction(**example["predictions"][0])
    line = json.loads((finished / "run" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert _keys(line) == {"method", *example["predictions"][0]}


def test_scores(finished: Path) -> None:
    (example,) = _values("scores")
    real = check_scores(read_json(finished / "run" / "scores.json"))
    assert check_scores(example) == example
    assert _keys(example) == _keys(real)
    for method in example["methods"].values():
        assert _keys(method) == _keys(real["methods"]["mta"])
        assert _keys(method["metrics"]) == _keys(method["ci95"]) == _keys(real["methods"]["mta"]["metrics"])
    assert _keys(example["comparisons"][0]) == _keys(real["comparisons"][0])
    assert _keys(example["run"]) <= _keys(real["run"])
    mta = example["methods"]["mta"]
    for metric, values in mta["by_seed"].items():
        assert mta["seed_sd"][metric] == pytest.approx(standard_deviation(values), abs=1e-4)


def test_judged_and_slices_of_the_scores() -> None:
    (example,) = _values("scores")
    rows = [Prediction("q", user_id, "comedy", "comedy", nll=1.0) for user_id in ("ann", "bob")]
    records = [MethodRecord(name=name, predictions=rows) for name in ("mta", "rag-1")]
    metrics, labels = get_task("lamp-2").metrics, get_task("lamp-2").labels
    real = build_scores("lamp-2", records, base="b", seeds=[1], metrics=metrics, labels=labels, judged="mta")
    assert _keys(example["judged"]) == _keys(real["judged"])
    assert _keys(example["methods"]["mta"]["metrics"]) == _keys(example["judged"]["best_rival"])
    partitions = usual_partitions(get_task("lamp-2"), [], pool=[], anchors=[], similarities={})
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in partitions)
    assert _keys(example["slices"]) <= _keys(partitions)
    found = slice_scores(
        records, {"p": dict.fromkeys([("ann", "q"), ("bob", "q")], "all")}, metrics=metrics, labels=labels
    )
    for entries in example["slices"].values():
        for entry in entries.values():
            assert _keys(entry) == _keys(found["p"]["all"])
            assert _keys(entry["methods"]["mta"]) == _keys(found["p"]["all"]["methods"]["mta"])


def test_bank(finished: Path) -> None:
    (example,) = _values("bank")
    real = read_json(finished / "run" / "bank" / "bank.json")
    assert _keys(example) == _keys(real)
    assert _keys(example["base"]) == _keys(real["base"])
    assert _keys(example["anchors"][0]) == _keys(real["anchors"][0])
    assert _keys(example["dropped_clusters"][0]) == {field.name for field in fields(DroppedCluster)}
    assert from_dict(BankConfig, example["config"]).anchors.min_history == 10
    assert example["asked"] - example["kept"] == len(example["dropped_clusters"])
    assert _keys(real["files"]) == _keys(example["files"])


def test_adapter_note_and_names(finished: Path) -> None:
    (example,) = _values("note")
    (path, *_) = sorted((finished / "run" / "adapters" / "mta").glob("*.safetensors"))
    with safe_open(path, "pt") as stream:
        assert _keys(example) == _keys(json.loads(stream.metadata()["note"]))
        assert "sha256" in stream.metadata()
        assert "model.layers.0.self_attn.q_proj.A" in set(stream.keys())


def test_run_folder_listing(finished: Path) -> None:
    names = {path.name for path in (finished / "run").iterdir()}
    listing = PAGE.read_text(encoding="utf-8").split("runs/NAME/\n", 1)[1].split("```", 1)[0]
    assert {name for name in names if name not in listing} == set()
    assert {path.name for path in (finished / "run" / "bank").iterdir()} == {
        "bank.json",
        "adapters.safetensors",
        "vectors.safetensors",
    }


def test_personas(finished: Path) -> None:
    (example,) = _values("personas")
    real = read_json(finished / "personas.json")
    assert _keys(example) == _keys(real)
    for side in ("pool", "target"):
        assert _keys(example[side]) == _keys(real[side])
        person = next(iter(example[side]["people"].values()))
        assert _keys(person) == _keys(next(iter(real[side]["people"].values())))


def test_peft_config(finished: Path) -> None:
    (example,) = _values("peft-config")
    real = read_json(finished / "tree" / "adapt_lora" / "hybrid_movie_tagging" / "adapt_lora_target-000" / CONFIG)
    assert _keys(example) == _keys(real)
    assert example["lora_alpha"] == example["r"]
    assert real["lora_alpha"] == real["r"]


def test_reference_layout(finished: Path, tmp_path: Path) -> None:
    tree = finished / "tree"
    anchors = _file(tmp_path, "anchor_user_data.jsonl", "reference-anchors")
    assert read_processed(anchors)[0].user_id == "8000101"
    line = json.loads((tree / "data/movie_tagging/anchor_user_data.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert _keys(_values("reference-anchors")[0]) == _keys(line)
    (matches,) = _values("reference-matches")
    real = read_json(tree / "dense_retrieval_results" / "movie_tagging" / "matches_results.json")
    assert _keys(matches[0]) == _keys(real[0])
    assert _keys(matches[0]["matches"][0]) == _keys(real[0]["matches"][0])
    (result,) = _values("reference-result")
    (aggregate,) = _values("reference-aggregate")
    folder = tree / "final_eval_results" / "hybrid_movie_tagging"
    real = read_json(folder / "final_aggregated_results_movie_tagging.json")
    assert _keys(aggregate) == _keys(real)
    assert _keys(aggregate["metadata"]) == _keys(real["metadata"])
    assert _keys(aggregate["aggregated_metrics"]) == _keys(real["aggregated_metrics"])
    mine = real["individual_results"][0]
    assert _keys(result) == _keys(mine)
    assert _keys(result["fusion"]) == _keys(mine["fusion"])
    assert _keys(result["detailed_predictions_original"][0]) == _keys(mine["detailed_predictions_original"][0])


def test_the_scores_in_the_reference_example_are_right() -> None:
    (result,) = _values("reference-result")
    rows = [Prediction("q", "u", pair["ground_truth"], pair["prediction"]) for pair in result["predictions"]]
    found = user_metrics(get_task("lamp-2"), rows)
    assert found == {name: pytest.approx(value, abs=1e-4) for name, value in result["metrics"].items()}


def test_the_record_of_adapters_is_read(tmp_path: Path) -> None:
    _file(tmp_path, "mta.json", "adapters-record")
    settings = read_settings(tmp_path, "mta")
    (example,) = _values("adapters-record")
    assert settings.merge.mode == "cat"
    assert settings.match("ann").anchor_ids == ("u17", "u203")
    assert settings.users == example["users"]
    assert settings.skipped == example["skipped"]
