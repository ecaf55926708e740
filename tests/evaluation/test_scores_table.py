from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pytest

from mta.baselines.methods import PARTS
from mta.baselines.simple import CONTROLS as SIMPLE_CONTROLS
from mta.errors import DataError, NotFound
from mta.evaluation.report import comparability, render_report
from mta.evaluation.scores import (
    CONTROLS,
    MethodRecord,
    best_methods,
    build_scores,
    check_scores,
    finite,
    shown_metrics,
)
from mta.evaluation.table import (
    comparison_rows,
    csv_table,
    format_cost,
    format_p,
    format_score,
    markdown_comparisons,
    markdown_table,
    method_notes,
)
from mta.files import read_json, write_json
from mta.records import Prediction

LABELS = ["a", "b"]


def record(name: str, texts: str, *, nll: float | None = None, **costs: float) -> MethodRecord:
    rows = [
        Prediction(f"q{index}", f"u{index % 3}", "a", text, label=None if nll is None else text, nll=nll)
        for index, text in enumerate(texts)
    ]
    return MethodRecord(name=name, predictions=rows, **costs)


def three_methods(**more: Any) -> dict[str, Any]:
    records = [
        record("base", "abbbbb", nll=2.0, updates_per_user=0, predict_seconds=0.004),
        record("majority", "aabbbb"),
        record("mta", "aaaaab", nll=0.5, updates_per_user=6, adapter_bytes_per_user=1.9e6, train_seconds=312.0),
    ]
    metrics = ["accuracy", "macro_f1"]
    return build_scores("lamp-2", records, base="tiny-random", seeds=[42], metrics=metrics, labels=LABELS, **more)


def test_scores_have_the_form_of_the_file(tmp_path: Any) -> None:
    scores = three_methods(comparisons=[("mta", "base"), ("mta", "majority")])
    assert list(scores) == ["task", "base", "seeds", "people", "queries", "methods", "comparisons"]
    assert (scores["people"], scores["queries"], scores["seeds"]) == (3, 6, [42])
    mta = scores["methods"]["mta"]
    assert set(mta) == {
        *("metrics", "ci95", "updates_per_user", "adapter_bytes_per_user", "train_seconds", "predict_seconds"),
        *("cut_prompts", "cut_training_prompts", "not_adapted"),
    }
    assert set(mta["metrics"]) == set(mta["ci95"]) == {"accuracy", "macro_f1", "label_accuracy", "nll"}
    assert mta["metrics"]["accuracy"] == pytest.approx(5 / 6)
    assert mta["predict_seconds"] is None
    write_json(tmp_path / "scores.json", scores)
    assert check_scores(read_json(tmp_path / "scores.json")) == scores


def test_comparisons_cover_the_metrics_both_have() -> None:
    scores = three_methods(comparisons=[("mta", "base"), ("mta", "majority")])
    pairs = [(row["b"], row["metric"]) for row in scores["comparisons"]]
    assert pairs == [
        *(("base", metric) for metric in ("accuracy", "macro_f1", "label_accuracy", "nll")),
        *(("majority", metric) for metric in ("accuracy", "macro_f1")),
    ]
    accuracy = scores["comparisons"][0]
    assert accuracy["difference"] == pytest.approx(4 / 6)
    assert accuracy["people"] == 3
    # Three people: base 1, 0, 0 right and mta 2, 2, 1. Only swapping all or none keeps the full difference.
    assert accuracy["p_value"] == 2 / 8


def test_numbers_that_json_does_not_have_become_null() -> None:
    rows = record("mta", "aab", updates_per_user=math.nan, train_seconds=math.inf)
    scores = build_scores("lamp-2", [rows], base="b", seeds=[1], metrics=["accuracy"], labels=LABELS)
    assert scores["methods"]["mta"]["updates_per_user"] is None
    json.dumps(scores, allow_nan=False)
    assert [finite(value) for value in (1, 2.5, math.nan, None, "3", True)] == [1, 2.5, None, None, None, None]


def test_one_person_gives_null_intervals_and_the_table_says_so() -> None:
    rows = MethodRecord(name="mta", predictions=[Prediction("1", "u", "a", "a"), Prediction("2", "u", "a", "b")])
    scores = build_scores("lamp-2", [rows], base="b", seeds=[1], metrics=["accuracy"], labels=LABELS)
    assert scores["methods"]["mta"]["ci95"] == {"accuracy": None}
    table = markdown_table(scores)
    assert "| mta | 0.500 |" in table
    assert "1 person, 2 queries" in table
    assert "need at least two" in table


def test_methods_must_have_answered_the_same_queries() -> None:
    with pytest.raises(DataError, match=r"method 'base' and method 'mta' answered different queries"):
        build_scores(
            "t", [record("base", "ab"), record("mta", "a")], base="b", seeds=[1], metrics=["accuracy"], labels=LABELS
        )
    with pytest.raises(DataError, match="'base' is given twice"):
        build_scores("t", [record("base", "ab")] * 2, base="b", seeds=[1], metrics=["accuracy"], labels=LABELS)
    with pytest.raises(DataError, match="no methods"):
        build_scores("t", [], base="b", seeds=[1], metrics=["accuracy"])
    with pytest.raises(NotFound, match="unknown method to compare 'oppu'; known: base, majority, mta"):
        three_methods(comparisons=[("mta", "oppu")])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "it is list"),
        ({"task": "t"}, "it has no base, seeds"),
        ({"task": "t", "base": "b", "seeds": [], "people": 1, "queries": 1, "methods": {}}, "at least one method"),
    ],
)
def test_what_is_no_scores_file(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"not the content of a scores.json: .*{message}"):
        check_scores(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"mta": {}}}, "method 'mta' has no 'metrics'"),
        ({"methods": {"mta": {"metrics": {}, "ci95": []}, "x": 3}}, "method 'x' has no 'metrics'"),
        ({"methods": {"mta": {"metrics": {}, "ci95": [1]}}}, "'ci95' of method 'mta' is not an object"),
        ({"methods": {"mta": {"metrics": {}, "ci95": {"mae": [1]}}}}, r"interval of 'mae' of method 'mta' is \[1\]"),
        ({"methods": {"mta": {"metrics": {}, "not_adapted": [3]}}}, "'not_adapted' of method 'mta' is not an object"),
        ({"comparisons": [3]}, "'comparisons' is not a list of objects"),
        ({"comparisons": [{"a": "x", "b": "y", "ci95": "no"}]}, "the difference 'x' - 'y' is 'no'"),
    ],
)
def test_damaged_parts_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        markdown_table({**three_methods(), **change})


def test_markdown_table() -> None:
    lines = markdown_table(three_methods()).splitlines()
    assert lines[0] == "lamp-2, base tiny-random, seed 42: 3 people, 6 queries."
    assert lines[2].split(" | ")[:4] == ["| method", "Acc ↑", "F1 ↑", "label acc ↑"]
    assert [line.split(" | ")[0] for line in lines[4:7]] == ["| base", "| majority", "| mta"]
    assert {line.count("|") for line in lines[2:7]} == {lines[2].count("|")}
    assert lines[6].split(" | ")[1].startswith("**0.833** [")
    assert lines[5].split(" | ")[4:6] == ["–", "–"]
    assert lines[6].rstrip(" |").split(" | ")[5:] == ["6", "1.9 MB", "5 min", "–"]
    assert "resamples people" in lines[-1]


def test_who_was_not_adapted_and_what_was_cut_stands_below_the_table() -> None:
    scores = three_methods()
    assert method_notes(scores) == []
    scores["methods"]["mta"] |= {"not_adapted": {"training diverged": 3}, "cut_prompts": 1, "cut_training_prompts": 12}
    scores["methods"]["base"] |= {"not_adapted": {}, "cut_prompts": 1200, "cut_training_prompts": 0}
    scores["methods"]["adapt-only"] = {"metrics": {}, "not_adapted": {"no training example": 1, "training diverged": 2}}
    del scores["methods"]["majority"]["not_adapted"]  # as in files of earlier versions
    notes = [
        "Not adapted: mta 3 users (training diverged); "
        "adapt-only 3 users (no training example: 1, training diverged: 2).",
        "Prompts cut to fit the model: base 1,200 in answering; mta 1 in answering and 12 in training.",
    ]
    assert method_notes(scores) == notes
    assert [line for line in markdown_table(scores).splitlines() if line][-2:] == notes
    page = render_report(scores=[scores], run_card={})
    assert all(note in page for note in notes)


def test_every_simple_control_is_a_control_of_the_report() -> None:
    assert set(SIMPLE_CONTROLS) < set(CONTROLS)
    assert {"base", "population"} < set(CONTROLS)
    assert not set(PARTS) & set(CONTROLS)
    records = [record(name, "ab") for name in ("base", "lead", "mta")]
    scores = build_scores("lamp-4", records, base="b", seeds=[1], metrics=["accuracy"], labels=LABELS)
    assert "Controls in the table: base, lead." in comparability(scores)


def test_names_cannot_break_a_markdown_table() -> None:
    scores = three_methods()
    scores["methods"]["a|b\n<b>*x*"] = scores["methods"].pop("base")
    row = markdown_table(scores).splitlines()[6]
    assert row.startswith(r"| a\|b \<b>\*x\* |")


def test_markdown_comparisons() -> None:
    assert markdown_comparisons(three_methods()) == ""
    text = markdown_comparisons(three_methods(comparisons=[("mta", "base")]))
    assert "| mta - base | Acc ↑ | +0.667 [" in text
    assert "not corrected for the number of comparisons (4)" in text


@pytest.mark.parametrize(
    ("metric", "pair", "p_value", "verdict"),
    [
        ("accuracy", [0.1, 0.3], 0.01, "mta better"),
        ("accuracy", [-0.3, -0.1], 0.01, "base better"),
        ("nll", [-0.3, -0.1], 0.01, "mta better"),
        ("accuracy", [-0.1, 0.3], 0.01, "may be noise"),
        ("accuracy", [0.1, 0.3], 0.06, "may be noise"),
        ("accuracy", None, 0.01, "no interval"),
    ],
)
def test_a_verdict_needs_interval_and_test(metric: str, pair: list[float] | None, p_value: float, verdict: str) -> None:
    row = {"a": "mta", "b": "base", "metric": metric, "difference": 0.2, "ci95": pair, "p_value": p_value}
    assert comparison_rows({"comparisons": [row]})[0]["verdict"] == verdict


def test_csv_table_reads_back() -> None:
    scores = three_methods()
    rows = list(csv.DictReader(io.StringIO(csv_table(scores))))
    assert [row["method"] for row in rows] == ["base", "majority", "mta"]
    assert float(rows[2]["accuracy"]) == scores["methods"]["mta"]["metrics"]["accuracy"]
    assert float(rows[2]["nll_high"]) == scores["methods"]["mta"]["ci95"]["nll"][1]
    assert (rows[1]["nll"], rows[1]["nll_low"], rows[0]["people"]) == ("", "", "3")


def test_best_is_by_direction_and_ties_share_it() -> None:
    scores = three_methods()
    assert best_methods(scores, "accuracy") == {"mta"}
    assert best_methods(scores, "nll") == {"mta"}
    scores["methods"]["base"]["metrics"]["nll"] = 0.50001
    assert best_methods(scores, "nll") == {"mta", "base"}
    del scores["methods"]["base"], scores["methods"]["majority"]
    assert best_methods(scores, "nll") == set()


def test_shown_metrics_keep_their_order_and_unknown_ones_come_last() -> None:
    scores = three_methods()
    scores["methods"]["base"]["metrics"]["a_new_one"] = 1.0
    scores["methods"]["base"]["metrics"]["mae"] = None
    assert shown_metrics(scores) == ["accuracy", "macro_f1", "label_accuracy", "nll", "a_new_one"]
    assert "a_new_one" in markdown_table(scores)


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("updates_per_user", 6, "6"),
        ("updates_per_user", 9.5, "9.5"),
        ("updates_per_user", None, "–"),
        ("adapter_bytes_per_user", 512, "512 B"),
        ("adapter_bytes_per_user", 1.9e6, "1.9 MB"),
        ("train_seconds", 0.004, "< 0.1 s"),
        ("train_seconds", 3.14, "3.1 s"),
        ("train_seconds", 59.6, "1 min"),
        ("train_seconds", 3600 * 2 + 300, "2 h 05 min"),
        ("train_seconds", math.nan, "–"),
    ],
)
def test_costs_with_units(cost: str, value: Any, text: str) -> None:
    assert format_cost(cost, value) == text


def test_numbers() -> None:
    assert [format_score(value) for value in (0.5, 12.3456, 20000.4, None)] == ["0.500", "12.346", "2e+04", "–"]
    assert [format_p(value) for value in (0.0002, 0.0312, 1.0, None)] == ["< .001", "0.031", "1.000", "–"]
