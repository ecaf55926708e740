from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from mta.adapter_files import load_adapter
from mta.bank import load_bank
from mta.base_model import BaseModel, load_base_model
from mta.config import AnchorConfig, BankConfig, MatchConfig, PromptConfig, TrainConfig
from mta.data.personas import write_personas
from mta.data.processed import read_processed
from mta.data.read import read_users
from mta.errors import AdapterError, BankError, ConfigError, DataError, MtaError
from mta.evaluation.reference_layout import write_reference_layout
from mta.evaluation.run import run
from mta.evaluation.run_config import RunConfig
from mta.files import read_json, safe_name
from mta.lora.adapter import cat
from mta.lora.peft_format import read_peft
from mta.records import HistoryItem, Query, User
from mta.tasks import get_task

HYBRID = "hybrid_movie_tagging"
ODD_ID = "ann/../😀"
LONG_TEXT = "  ".join(f"w{number}" for number in range(400))


@dataclass(frozen=True)
class Finished:
    folder: Path
    pool: list[User]
    targets: list[User]
    base: BaseModel

    def write(self, out: Path, *, method: str = "mta", folder: Path | None = None) -> list[Path]:
        return write_reference_layout(
            folder or self.folder, out, pool=self.pool, targets=self.targets, base=self.base, method=method
        )

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.folder, to))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A finished run over four unlike targets: a number, an unsafe id, nothing to adapt on, no queries."""
    folder = tmp_path_factory.mktemp("reference")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_CACHE", str(folder / "cache"))
        pool, targets = _people(folder / "personas")
        train = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=1, batch_size=4, target_modules=("q_proj", "v_proj"))
        bank = BankConfig(
            prompts=PromptConfig(max_tokens=1024),
            anchors=AnchorConfig(bank_size=3, min_history=2, encoder="tiny-random"),
            match=MatchConfig(encoder="tiny-random"),
            train=train,
        )
        config = RunConfig(
            task_id="lamp-2",
            base="tiny-random",
            bank=bank,
            adapt=train,
            methods=("base", "merged-only", "mta", "mta-linear", "uniform-weights"),
        )
        base = load_base_model("tiny-random", device="cpu", dtype="float32")
        run(pool, targets, config, folder / "run", base=base)
    yield Finished(folder / "run", pool, targets, base)
    torch.set_num_threads(threads)


def _people(folder: Path) -> tuple[list[User], list[User]]:
    write_personas(
        folder, task_id="lamp-2", pool=5, targets=3, pool_history=6, target_history=(3, 4), target_queries=2, seed=1
    )
    task = get_task("lamp-2")
    pool = [
        replace(user, user_id=str(100 + number))
        for number, user in enumerate(read_users(folder / "pool_questions.json", task=task).users)
    ]
    long_item = HistoryItem("long", {"description": LONG_TEXT, "tag": "comedy"}, "2024-05-01")
    pool[0] = replace(pool[0], history=(*pool[0].history, long_item))  # the longest history, so an anchor
    first, second, third = read_users(folder / "target_questions.json", task=task).users
    unknown_tag = tuple(replace(item, fields={**item.fields, "tag": "noir"}) for item in third.history)
    return pool, [
        replace(first, user_id="17"),
        replace(second, user_id=ODD_ID),
        replace(third, user_id="no-pairs", history=unknown_tag),
        User("silent", (HistoryItem("s0", {"description": "A quiet film nobody saw.", "tag": "classic"}),)),
    ]


@pytest.fixture(scope="session")
def tree(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tree")
    finished.write(out)
    return out


def _rows(finished: Finished, user_id: str, method: str = "mta") -> list[dict[str, str]]:
    rows = read_json(finished.folder / "predictions" / f"{method}.json")["predictions"]
    return [row for row in rows if row["user_id"] == user_id]


def _weights(finished: Finished, user_id: str) -> list[float]:
    return next(row for row in read_json(finished.folder / "matches.json") if row["user_id"] == user_id)["weights"]


def _result(tree: Path, finished: Finished, user_id: str) -> dict[str, object]:
    alpha = f"{_weights(finished, user_id)[0]:.6f}"
    content: dict[str, object] = read_json(
        tree / "final_eval_results" / HYBRID / f"results_{safe_name(user_id)}_alpha_{alpha}.json"
    )
    return content


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_tree_holds_the_original_files_and_nothing_else(finished: Finished, tmp_path: Path) -> None:
    written = finished.write(tmp_path)
    odd = safe_name(ODD_ID)
    peft = ("adapter_config.json", "adapter_model.safetensors")
    merged = {f"merge_lora/{HYBRID}/merge_lora_{u}/{f}" for u in ("17", odd, "no-pairs", "silent") for f in peft}
    adapted = {f"adapt_lora/{HYBRID}/adapt_lora_{u}/{f}" for u in ("17", odd, "silent") for f in peft}
    answered = ("17", ODD_ID, "no-pairs")
    results = {f"results_{safe_name(u)}_alpha_{_weights(finished, u)[0]:.6f}.json" for u in answered}
    results.add("final_aggregated_results_movie_tagging.json")
    expected = {
        "data/movie_tagging/anchor_user_data.jsonl",
        "dense_retrieval_results/movie_tagging/matches_results.json",
        *merged,
        *adapted,
        *(f"final_eval_results/{HYBRID}/{name}" for name in results),
    }
    assert set(_files(tmp_path)) == expected
    assert {path.relative_to(tmp_path).as_posix() for path in written} == expected
    assert len(written) == len(expected)
    assert "/" not in odd
    assert ".." not in odd


def test_anchor_records_are_whole_and_read_back_as_processed_data(finished: Finished, tree: Path) -> None:
    path = tree / "data" / "movie_tagging" / "anchor_user_data.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pool = {user.user_id: user for user in finished.pool}
    assert [str(line["user_id"]) for line in lines] == list(load_bank(finished.folder / "bank").anchor_ids)
    assert all(isinstance(line["user_id"], int) for line in lines)
    assert all(set(line) == {"user_id", "profile", "query"} for line in lines)
    assert all(set(query) == {"id", "input", "gold"} for line in lines for query in line["query"])
    long_item = next(item for line in lines for item in line["profile"] if item["id"] == "long")
    assert long_item["description"] == " ".join(LONG_TEXT.split()[:368])
    assert long_item["date"] == "2024-05-01"
    for user in read_processed(path):
        assert user.queries == pool[user.user_id].queries
        assert [item.item_id for item in user.history] == [item.item_id for item in pool[user.user_id].history]
        assert user.history[0] == pool[user.user_id].history[0]


def test_matches_are_those_of_the_run(finished: Finished, tree: Path) -> None:
    written = read_json(tree / "dense_retrieval_results" / "movie_tagging" / "matches_results.json")
    run_rows = read_json(finished.folder / "matches.json")
    assert [row["few_shot_user_id"] for row in written] == [17, ODD_ID, "no-pairs", "silent"]
    for row, of_run in zip(written, run_rows, strict=True):
        assert set(row) == {"few_shot_user_id", "matches"}
        assert [match["rank"] for match in row["matches"]] == [1, 2]
        assert [match["anchor_user_id"] for match in row["matches"]] == [int(name) for name in of_run["anchor_ids"]]
        assert [match["similarity_score"] for match in row["matches"]] == of_run["similarities"]
        assert all(set(match) == {"rank", "anchor_user_id", "similarity_score"} for match in row["matches"])


@pytest.mark.parametrize("user_id", ["17", ODD_ID])
def test_the_two_adapter_folders_sum_to_the_adapter_of_the_run(finished: Finished, tree: Path, user_id: str) -> None:
    merged = read_peft(tree / "merge_lora" / HYBRID / f"merge_lora_{safe_name(user_id)}")
    adapted = read_peft(tree / "adapt_lora" / HYBRID / f"adapt_lora_{safe_name(user_id)}")
    own, _ = load_adapter(finished.folder / "adapters" / "mta" / f"{safe_name(user_id)}.safetensors")
    bank = load_bank(finished.folder / "bank")
    row = next(row for row in read_json(finished.folder / "matches.json") if row["user_id"] == user_id)
    assert (merged.rank, adapted.rank) == (4, 2)  # K * r of the bank; r of the adaptation
    whole = cat([merged, adapted])
    assert whole.norm() > 0
    for name in whole.modules:
        expected = own.delta(name).double()
        for anchor, weight in zip(row["anchor_ids"], row["weights"], strict=True):
            expected = expected + weight * bank.adapter(anchor).delta(name).double()
        torch.testing.assert_close(whole.delta(name).double(), expected, rtol=1e-5, atol=1e-7)
    assert read_json(tree / "adapt_lora" / HYBRID / f"adapt_lora_{safe_name(user_id)}" / "adapter_config.json")[
        "base_model_name_or_path"
    ] == ("tiny-random")


def test_a_users_result_file_has_the_original_keys_and_the_runs_answers(finished: Finished, tree: Path) -> None:
    result = _result(tree, finished, "17")
    rows = _rows(finished, "17")
    pairs = [{"prediction": row["text"], "ground_truth": row["gold"]} for row in rows]
    assert {
        "user_id",
        "alpha_value",
        "metrics",
        "total_samples",
        "predictions",
        "detailed_predictions_original",
        "merged_base_model_path",
        "stacked_lora_path",
    } <= set(result)
    assert result["user_id"] == "17"
    assert result["alpha_value"] == round(_weights(finished, "17")[0], 6)
    assert result["total_samples"] == len(rows) == 2
    assert result["predictions"] == pairs
    assert result["metrics"]["accuracy"] == sum(row["text"] == row["gold"] for row in rows) / 2
    assert set(result["metrics"]) == {"accuracy", "macro_f1"}
    assert result["stacked_lora_path"] == f"adapt_lora/{HYBRID}/adapt_lora_17"
    assert result["fused_lora_path"] == f"merge_lora/{HYBRID}/merge_lora_17"
    assert result["merged_base_model_path"] is None
    detail = result["detailed_predictions_original"][0]
    assert set(detail) == {"instruction", "raw_prediction", "prediction", "ground_truth"}
    assert detail["instruction"].startswith("### User History:\n")
    assert detail["instruction"].endswith(" Tag:")


def test_the_result_file_says_which_anchors_were_fused_how(finished: Finished, tree: Path) -> None:
    fusion = _result(tree, finished, "17")["fusion"]
    row = read_json(finished.folder / "matches.json")[0]
    assert fusion == {
        "mode": "cat",
        "scale": 1.0,
        "anchor_user_ids": [int(name) for name in row["anchor_ids"]],
        "similarity_scores": row["similarities"],
        "weights": row["weights"],
    }
    assert fusion["weights"][0] >= fusion["weights"][1]


def test_a_user_without_training_pairs_has_a_merged_adapter_only(finished: Finished, tree: Path) -> None:
    assert _result(tree, finished, "no-pairs")["stacked_lora_path"] is None


def test_the_aggregate_scores_are_those_of_the_run(finished: Finished, tree: Path) -> None:
    aggregated = read_json(tree / "final_eval_results" / HYBRID / "final_aggregated_results_movie_tagging.json")
    of_run = read_json(finished.folder / "scores.json")["methods"]["mta"]["metrics"]
    assert set(aggregated) == {"metadata", "aggregated_metrics", "individual_results"}
    assert set(aggregated["metadata"]) == {
        "aggregation_timestamp",
        "source_directory",
        "total_users_processed",
    }
    assert aggregated["metadata"]["total_users_processed"] == 3
    assert aggregated["aggregated_metrics"] == {
        "accuracy": pytest.approx(of_run["accuracy"]),
        "macro_f1": pytest.approx(of_run["macro_f1"]),
    }
    assert aggregated["individual_results"] == [_result(tree, finished, name) for name in ("17", ODD_ID, "no-pairs")]


def test_writing_again_gives_the_same_content(finished: Finished, tmp_path: Path) -> None:
    finished.write(tmp_path)
    first, tensors = _contents(tmp_path)
    finished.write(tmp_path)
    assert _contents(tmp_path) == (first, tensors)
    assert len(tensors) == 7


def _contents(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Plain files by their bytes, adapters by their values: safetensors orders its metadata by chance."""
    plain = {name: data for name, data in _files(folder).items() if not name.endswith(".safetensors")}
    adapters = (path.parent for path in folder.rglob("*.safetensors"))
    return plain, {str(path.relative_to(folder)): read_peft(path).fingerprint() for path in adapters}


def test_the_linear_method_keeps_the_rank_and_merged_only_has_no_own_adapter(
    finished: Finished, tmp_path: Path
) -> None:
    finished.write(tmp_path / "linear", method="mta-linear")
    finished.write(tmp_path / "merged", method="merged-only")
    linear = read_peft(tmp_path / "linear" / "merge_lora" / HYBRID / "merge_lora_17")
    assert linear.rank == 2
    assert _result(tmp_path / "linear", finished, "17")["fusion"]["mode"] == "linear"
    assert not (tmp_path / "merged" / "adapt_lora").exists()
    merged = _result(tmp_path / "merged", finished, "17")
    assert merged["stacked_lora_path"] is None
    answers = [row["text"] for row in _rows(finished, "17", "merged-only")]
    assert [row["prediction"] for row in merged["predictions"]] == answers


def test_a_method_with_weights_of_its_own_is_written_with_these(finished: Finished, tmp_path: Path) -> None:
    finished.write(tmp_path, method="uniform-weights")
    written = read_json(tmp_path / "final_eval_results" / HYBRID / "results_17_alpha_0.500000.json")
    assert written["fusion"]["weights"] == [0.5, 0.5]
    recorded = read_json(finished.folder / "adapters" / "uniform-weights.json")["matches"]["17"]
    assert read_json(finished.folder / "matches.json")[0]["weights"] != recorded["weights"]


@pytest.mark.parametrize(
    "leftover",
    [
        f"final_eval_results/{HYBRID}/results_17_alpha_0.123456.json",
        f"final_eval_results/{HYBRID}/results_99_alpha_0.500000.json",
        f"merge_lora/{HYBRID}/merge_lora_99/adapter_config.json",
        f"adapt_lora/{HYBRID}/adapt_lora_no-pairs/adapter_config.json",
    ],
)
def test_leftovers_of_other_results_are_refused_before_anything_is_written(
    finished: Finished, tmp_path: Path, leftover: str
) -> None:
    path = tmp_path / leftover
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"already holds 1 .* choose an empty folder"):
        finished.write(tmp_path)
    assert _files(tmp_path) == {leftover: b"{}"}


def test_files_of_other_tasks_and_of_the_user_are_left_alone(finished: Finished, tmp_path: Path) -> None:
    others = {
        "data/movie_tagging/user_anchor_candidate.json": b"[]",
        "final_eval_results/hybrid_citation/results_1_alpha_0.5.json": b"{}",
        f"adapt_lora/{HYBRID}/notes.txt": b"mine",
    }
    for name, content in others.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    finished.write(tmp_path)
    assert others.items() <= _files(tmp_path).items()


def test_a_method_without_anchors_is_refused(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of merged-only, merged-only-linear, "):
        finished.write(tmp_path, method="base")


@pytest.mark.parametrize("missing", ["scores.json", "matches.json", "predictions/mta.json", "config.json"])
def test_an_unfinished_run_is_refused(finished: Finished, tmp_path: Path, missing: str) -> None:
    folder = finished.copy(tmp_path / "run")
    (folder / missing).unlink()
    with pytest.raises(DataError, match="not a finished run"):
        finished.write(tmp_path / "out", folder=folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "matches.json", "predictions/mta.json", "adapters/mta.json"])
@pytest.mark.parametrize("content", ["[]", "{}", '[{"user_id": "17"}]', '{"config": {"task_id": "lamp-2"}}', "7", "{"])
def test_a_damaged_file_of_the_run_is_a_clear_error(
    finished: Finished, tmp_path: Path, name: str, content: str
) -> None:
    folder = finished.copy(tmp_path / "run")
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(MtaError):
        finished.write(tmp_path / "out", folder=folder)


def test_a_match_whose_user_has_no_text_for_a_name_is_a_clear_error(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    rows = json.loads((folder / "matches.json").read_text(encoding="utf-8"))
    (folder / "matches.json").write_text(json.dumps([{**rows[0], "user_id": {}}, *rows[1:]]), encoding="utf-8")
    with pytest.raises(DataError, match="not the matches file"):
        finished.write(tmp_path / "out", folder=folder)


def test_adapters_that_did_not_give_the_answers_are_refused(finished: Finished, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    shutil.copy(folder / "adapters/mta-linear/17.safetensors", folder / "adapters/mta/17.safetensors")
    with pytest.raises(AdapterError, match="other settings or data than recorded"):
        finished.write(tmp_path / "out", folder=folder)
    shutil.copytree(folder / "adapters/mta-linear", folder / "adapters/mta", dirs_exist_ok=True)
    shutil.copy(folder / "adapters/mta-linear.json", folder / "adapters/mta.json")
    with pytest.raises(DataError, match="was not made from the adapters"):
        finished.write(tmp_path / "out", folder=folder)


def test_other_target_users_are_refused(finished: Finished, tmp_path: Path) -> None:
    fewer = replace(finished, targets=finished.targets[:2])
    stranger = replace(finished, targets=[*finished.targets[:3], replace(finished.targets[3], user_id="18")])
    asked = replace(finished.targets[0], queries=(Query("q", finished.targets[0].queries[0].text, "comedy"),))
    other_queries = replace(finished, targets=[asked, *finished.targets[1:]])
    for wrong, message in ((fewer, "got 2 targets"), (stranger, "'18' is not"), (other_queries, "was not made from")):
        with pytest.raises(DataError, match=message):
            wrong.write(tmp_path)


def test_a_pool_without_an_anchor_or_with_another_history_is_refused(finished: Finished, tmp_path: Path) -> None:
    anchor = load_bank(finished.folder / "bank").anchor_ids[0]
    without = [user for user in finished.pool if user.user_id != anchor]
    cut = [replace(user, history=user.history[:1]) for user in finished.pool]
    with pytest.raises(DataError, match="is not in the pool"):
        replace(finished, pool=without).write(tmp_path)
    with pytest.raises(DataError, match="has another history"):
        replace(finished, pool=cut).write(tmp_path)


def test_another_base_model_is_refused(finished: Finished, tmp_path: Path) -> None:
    other = replace(finished.base, fingerprint="0" * 64)
    with pytest.raises(BankError, match="was trained on base model"):
        replace(finished, base=other).write(tmp_path)
