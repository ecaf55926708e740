from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from mta.config import MergeConfig
from mta.evaluation.reference_results import (
    Places,
    aggregate,
    aggregated_metrics,
    number_or_text,
    result_name,
    user_metrics,
    user_result,
)
from mta.merging import Match
from mta.records import Prediction
from mta.tasks import get_task

MATCH = Match("17", ("5", "ann", "7"), (0.9, 0.6, 0.3), (0.5, 1 / 3, 1 / 6))
PLACES = Places(
    base_model="tiny-random",
    merged="merge_lora/hybrid_x/merge_lora_17",
    adapted="adapt_lora/hybrid_x/adapt_lora_17",
    strategy="hybrid_x",
    merge=MergeConfig(mode="linear", scale=0.5),
    method="mta-linear",
    answered_at="2026-01-31T09:30:00+00:00",
)


def _rows(pairs: Sequence[tuple[str, str]], user_id: str = "17") -> list[Prediction]:
    return [Prediction(f"q{place}", user_id, gold, text) for place, (text, gold) in enumerate(pairs)]


def _result(task_id: str, pairs: Sequence[tuple[str, str]]) -> dict[str, object]:
    return user_result(get_task(task_id), _rows(pairs), match=MATCH, shown={"q0": "Prompt:"}, places=PLACES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8000817", 8000817),
        ("0", 0),
        ("-3", -3),
        ("007", "007"),
        ("-0", "-0"),
        ("1.5", "1.5"),
        ("", ""),
        ("²", "²"),
        ("٣", "٣"),
        ("9" * 5000, "9" * 5000),
        ("ann", "ann"),
        ("1 ", "1 "),
    ],
)
def test_only_ids_that_spell_a_number_become_numbers(text: str, value: int | str) -> None:
    assert number_or_text(text) == value
    assert type(number_or_text(text)) is type(value)


def test_headline_files_carry_no_weight_in_their_name() -> None:
    assert result_name(get_task("lamp-2"), "17", MATCH) == "results_17_alpha_0.500000.json"
    assert result_name(get_task("lamp-4"), "17", MATCH) == "result_user_17.json"
    alone = Match("17", ("5",), (0.9,), (1.0,))
    assert result_name(get_task("own"), "17", alone) == "results_17_alpha_1.000000.json"


def test_citation_calls_its_macro_f1_f1_and_the_aggregate_does_not() -> None:
    pairs = [("[1]", "[1]"), ("[1]", "[2]"), ("", "[2]"), ("[2]", "[2]")]
    found = _result("lamp-1", pairs)
    # [1]: tp 1, fp 1, fn 0 -> 2/3; [2]: tp 1, fp 0, fn 2 -> 1/2; the empty answer stays in
    assert found["metrics"] == {"accuracy": 0.5, "f1": pytest.approx((2 / 3 + 1 / 2) / 2)}
    assert found["total_samples"] == 4
    assert found["predictions"][2] == {"prediction": "", "ground_truth": "[2]"}
    assert found["alpha_value"] == 0.5
    assert found["stacked_lora_id"] == "hybrid_x"
    assert {"eval_data_file", "evaluation_timestamp"} <= set(found)
    assert aggregated_metrics(get_task("lamp-1"), _rows(pairs)) == {
        "accuracy": 0.5,
        "macro_f1": found["metrics"]["f1"],
    }


def test_ratings_count_unreadable_answers_as_the_farther_extreme() -> None:
    pairs = [("4", "5"), ("great", "4"), ("5", "5")]  # errors 1, 3, 0
    found = _result("lamp-3", pairs)
    assert found["metrics"] == {
        "accuracy_percent": pytest.approx(100 / 3),
        "mae_on_all_samples": pytest.approx(4 / 3),
        "rmse_on_all_samples": pytest.approx(math.sqrt(10 / 3)),
    }
    assert found["mae_on_all_samples"] == found["metrics"]["mae_on_all_samples"]
    assert (found["penalized_samples"], found["valid_prediction_samples"], found["total_samples"]) == (1, 2, 3)
    assert aggregated_metrics(get_task("lamp-3"), _rows(pairs)) == {
        "mean_mae": pytest.approx(4 / 3),
        "mean_accuracy_percent": pytest.approx(100 / 3),
        "mean_rmse": pytest.approx(math.sqrt(10 / 3)),
    }


def test_headlines_have_their_own_keys_and_all_rouge_parts() -> None:
    found = _result("lamp-4", [("the cat sat", "the cat"), ("", "a dog")])
    expected = {"precision": pytest.approx(1 / 3), "recall": pytest.approx(0.5), "fmeasure": pytest.approx(0.4)}
    assert found["metrics"] == {"rouge1": expected, "rougeL": expected}  # halves of 2/3, 1 and 0.8
    assert found["rouge_metrics"] == found["metrics"]
    assert found["alpha"] == 0.5
    assert "alpha_value" not in found
    assert found["predictions"] == [
        {"instruction": "Prompt:", "raw_output": None, "prediction": "the cat sat", "ground_truth": "the cat"},
        {"instruction": None, "raw_output": None, "prediction": "", "ground_truth": "a dog"},
    ]


def test_words_are_not_stemmed() -> None:
    rouge = user_metrics(get_task("lamp-4"), _rows([("cats", "cat")]))
    assert rouge["rouge1"]["fmeasure"] == 0.0


def test_scholarly_titles_have_detailed_results_and_the_unmerged_paths() -> None:
    found = _result("lamp-5", [("On v2.0 of it", "On v2.0 of it")])
    assert found["detailed_results"][0]["prediction"] == "On v2.0 of it"
    assert found["metrics"]["rougeL"]["fmeasure"] == pytest.approx(1.0)
    assert found["base_model_path"] == "tiny-random"
    assert found["fused_lora_path"] == PLACES.merged
    assert found["stacked_lora_path"] == PLACES.adapted


def test_more_than_two_anchors_are_all_in_the_file() -> None:
    assert _result("lamp-2", [("comedy", "comedy")])["fusion"] == {
        "mode": "linear",
        "scale": 0.5,
        "anchor_user_ids": [5, "ann", 7],
        "similarity_scores": [0.9, 0.6, 0.3],
        "weights": [0.5, 1 / 3, 1 / 6],
    }


def test_the_aggregate_is_the_mean_over_queries_of_the_users_files() -> None:
    task = get_task("lamp-3")
    users = {"17": [("4", "5"), ("x", "4"), ("5", "5")], "18": [("1", "3")]}
    rows = {name: _rows(pairs, name) for name, pairs in users.items()}
    results = [user_result(task, part, match=MATCH, shown={}, places=PLACES) for part in rows.values()]
    pooled = [row for part in rows.values() for row in part]
    found = aggregate(task, pooled, results, results_folder="final_eval_results/hybrid_x", answered_at="now")
    assert found["metadata"] == {
        "aggregation_timestamp": "now",
        "source_directory": "final_eval_results/hybrid_x",
        "total_users_processed": 2,
    }
    sizes = [result["total_samples"] for result in results]
    by_hand = sum(n * result["metrics"]["mae_on_all_samples"] for n, result in zip(sizes, results, strict=True)) / 4
    assert found["aggregated_metrics"]["mean_mae"] == pytest.approx(by_hand) == pytest.approx((1 + 3 + 0 + 2) / 4)
    assert found["individual_results"] == results
