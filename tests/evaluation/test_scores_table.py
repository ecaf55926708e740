from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from mta.errors import DataError, NotFound
from mta.evaluation.formats import format_cost, format_p, format_score
from mta.evaluation.marks import best_methods, is_proven, second_methods
from mta.evaluation.notes import comparison_line, method_notes
from mta.evaluation.released_table import markdown_released, released_grid
from mta.evaluation.report import comparability, render_report
from mta.evaluation.scores import MethodRecord, build_scores, planned_comparisons
from mta.evaluation.scores_file import check_scores, finite, shown_metrics
from mta.evaluation.statistics import holm
from mta.evaluation.table import comparison_rows, csv_table, markdown_comparisons, markdown_slices, markdown_table
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
    assert list(scores) == [
        *("task", "base", "seeds", "people", "queries", "methods", "judged", "comparisons", "slices"),
    ]
    assert (scores["judged"], scores["slices"]) == (None, {})
    assert (scores["people"], scores["queries"], scores["seeds"]) == (3, 6, [42])
    mta = scores["methods"]["mta"]
    assert set(mta) == {
        *("metrics", "ci95", "updates_per_user", "adapter_bytes_per_user", "shared_train_seconds"),
        *("train_seconds", "predict_seconds"),
        *("cut_prompts", "cut_training_prompts", "not_adapted", "chosen_on_pool", "chosen_by_users"),
        *("seeds", "by_seed"),
        "seed_sd",
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
    assert accuracy["p_holm"] == 4 / 8
    assert scores["comparisons"][2]["p_holm"] == scores["comparisons"][2]["p_value"]  # majority has no label accuracy


def test_corrected_p_values_are_of_one_metric_and_one_first_method() -> None:
    scores = three_methods(judged="mta", comparisons=[("mta", "base"), ("majority", "base")])
    pairs = [(row["a"], row["b"]) for row in scores["comparisons"] if row["metric"] == "accuracy"]
    assert pairs == [("mta", "base"), ("mta", "majority"), ("majority", "base")]
    for row in scores["comparisons"]:
        family = [r["p_value"] for r in scores["comparisons"] if (r["a"], r["metric"]) == (row["a"], row["metric"])]
        same = [
            r["p_holm"]
            for r in scores["comparisons"]
            if (r["a"], r["metric"], r["p_value"]) == (row["a"], row["metric"], row["p_value"])
        ]
        assert row["p_holm"] in same
        assert sorted(holm(family))[sorted(family).index(row["p_value"])] == row["p_holm"]


def test_numbers_that_json_does_not_have_become_null() -> None:
    rows = record("mta", "aab", updates_per_user=math.nan, train_seconds=math.inf)
    scores = build_scores("lamp-2", [rows], base="b", seeds=[1], metrics=["accuracy"], labels=LABELS)
    assert scores["methods"]["mta"]["updates_per_user"] is None
    json.dumps(scores, allow_nan=False)
    assert [finite(value) for value in (1, 2.5, math.nan, None, "3", True, 10**400)] == [1, 2.5, *[None] * 5]


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
        ({"methods": {"mta": {"metrics": {}, "by_seed": [3]}}}, "'by_seed' of method 'mta' is not an object"),
        ({"methods": {"mta": {"metrics": {}, "seed_sd": 3}}}, "'seed_sd' of method 'mta' is not an object"),
        ({"methods": {"mta": {"metrics": {}, "seeds": 3}}}, "'seeds' of method 'mta' is not a list"),
        ({"judged": "mta"}, "'judged' is not an object with a 'method'"),
        ({"judged": {"method": "mta", "best_rival": "base"}}, "'best_rival' in 'judged' is not an object"),
        ({"slices": {"p": 3}}, "'slices' is not an object of objects"),
        ({"slices": {"p": {"x": {"people": 1}}}}, "slice 'x' of 'p' has not all of people, queries and methods"),
        ({"slices": {"p": {"x": {"people": 1, "queries": 1, "methods": []}}}}, "'methods' of slice 'x' of 'p' is not"),
        (
            {"slices": {"p": {"x": {"people": 1, "queries": 1, "methods": {"mta": {}}}}}},
            "method 'mta' in slice 'x' of 'p' has no 'metrics'",
        ),
        ({"methods": {"mta": {}}}, "method 'mta' has no 'metrics'"),
        ({"methods": {"mta": {"metrics": {}, "ci95": []}, "x": 3}}, "method 'x' has no 'metrics'"),
        ({"methods": {"mta": {"metrics": {}, "ci95": [1]}}}, "'ci95' of method 'mta' is not an object"),
        ({"methods": {"mta": {"metrics": {}, "ci95": {"mae": [1]}}}}, r"interval of 'mae' of method 'mta' is \[1\]"),
        ({"methods": {"mta": {"metrics": {}, "not_adapted": [3]}}}, "'not_adapted' of method 'mta' is not an object"),
        ({"methods": {"mta": {"metrics": {}, "chosen_on_pool": [3]}}}, "'chosen_on_pool' of method 'mta' is not"),
        ({"comparisons": [3]}, "'comparisons' is not a list of objects"),
        ({"task": ["lamp-2"]}, r"'task' is \['lamp-2'\], wanted a name"),
        ({"run": 3}, "'run' is not an object"),
        ({"run": {"settings": {"bank": {"train": 3}}}}, "'train' in 'run' is not an object"),
        ({"run": {"history items": {"pool": []}}}, "'pool' in 'run' is not an object"),
        ({"methods": {"mta": {"metrics": {}, "seeds": None}}}, "'seeds' of method 'mta' is not a list"),
        ({"comparisons": [{"a": "x", "b": "y", "metric": []}]}, "'metric' of a comparison is"),
        ({"comparisons": [{"a": "x", "b": "y", "metric": "mae", "ci95": "no"}]}, "the difference 'x' - 'y' is 'no'"),
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
        "Not adapted: 3 users (training diverged) of mta; 1 user (no training example) of adapt-only; "
        "2 users (training diverged) of adapt-only.",
        "Prompts cut to fit the model: base 1,200 in answering; mta 1 in answering and 12 in training.",
    ]
    assert method_notes(scores) == notes
    assert [line for line in markdown_table(scores).splitlines() if line][-2:] == notes
    page = render_report(scores=[scores], run_card={})
    assert all(note in page for note in notes)


def test_what_was_chosen_on_the_pool_stands_below_the_table() -> None:
    records = [
        replace(record("base", "ab"), chosen_on_pool=[{}]),
        replace(record("classical", "ab"), chosen_on_pool=[{"C": 3.0, "strength": 1.25}]),
        replace(record("mta+prior", "ab"), chosen_on_pool=[{"prior strength": s} for s in (0.0, 0.25, 0.0)]),
        replace(record("mta", "ab"), chosen_on_pool=[{"x": 1.0}, {"x": 1.0}]),
    ]
    scores = build_scores("lamp-2", records, base="b", seeds=[1], metrics=["accuracy"], labels=LABELS)
    assert scores["methods"]["base"]["chosen_on_pool"] == []
    assert method_notes(scores) == [
        "Chosen on users of the pool: classical C 3, strength 1.25; mta+prior prior strength 0 / 0.25 / 0; mta x 1."
    ]


def test_scores_by_the_authors_scripts_are_a_table_of_their_own() -> None:
    scores = {**three_methods(), "released": {"base": {"accuracy": 0.5, "f1": None}, "a|b": {}}}
    assert released_grid(scores) == (
        ["method", "Acc", "F1 over labels that occur"],
        [["base", "0.500", "–"], ["a|b", "–", "–"]],
    )
    assert "| a\\|b | – | – |" in markdown_released(scores)
    assert released_grid(three_methods()) is None
    assert markdown_released(three_methods()) == ""
    with pytest.raises(DataError, match="'released' in the scores is not an object of objects"):
        released_grid({**three_methods(), "released": [1]})


def test_controls_are_named() -> None:
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
    assert "| p | p (Holm) |" in text.splitlines()[0]
    assert "not corrected" not in text
    assert "corrected over all methods that the first is compared with by the same metric (up to 1)" in text
    assert "(up to 2)" in markdown_comparisons(three_methods(judged="mta"))


def test_scores_of_an_earlier_version_are_read_and_printed() -> None:
    scores = three_methods(comparisons=[("mta", "base")])
    del scores["judged"], scores["slices"]
    for method in scores["methods"].values():
        del method["seeds"], method["by_seed"], method["seed_sd"]
    for row in scores["comparisons"]:
        del row["p_holm"]
    assert check_scores(scores) == scores
    assert "**0.833**" in markdown_table(scores)
    text = markdown_comparisons(scores)
    assert "not corrected for the number of comparisons (4)" in text
    assert "| 0.250 | – |" in text
    assert markdown_slices(scores) == ""
    assert len(list(csv.DictReader(io.StringIO(csv_table(scores))))) == 3
    page = render_report(scores=[scores], run_card={})
    assert "not corrected for the number of comparisons (4)" in page
    assert "<h3>Slices</h3>" not in page


def test_a_verdict_goes_by_the_corrected_p_value() -> None:
    row = {"a": "x", "b": "y", "metric": "accuracy", "ci95": [0.1, 0.3], "p_value": 0.01, "p_holm": 0.06}
    assert comparison_rows({"comparisons": [row]})[0]["verdict"] == "may be noise"
    assert comparison_rows({"comparisons": [{**row, "p_holm": 0.04}]})[0]["verdict"] == "x better"


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


# who is compared, and marks ---------------------------------------------------------------------------------------


def twenty(name: str, right: int, *, nll: float = 1.0, seeds: int = 0) -> MethodRecord:
    """Twenty people with one query each, of which the first `right` are answered right; equal for every seed."""
    rows = [
        Prediction("q", f"u{place}", "a", "a" if place < right else "b", label="a", nll=nll)
        for _ in range(seeds or 1)
        for place in range(20)
    ]
    seed_of = [seed for seed in range(seeds) for _ in range(20)] if seeds else None
    return MethodRecord(name=name, predictions=rows, seed_of=seed_of)


def scored(*records: MethodRecord, **more: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {"base": "b", "seeds": [1], "metrics": ["accuracy"], "labels": LABELS, "judged": "mta"}
    return build_scores("lamp-2", records, **{**parts, **more})


def test_no_asterisk_while_a_published_rival_may_be_as_good() -> None:
    """merged-only, better than oppu here and clearly beaten, is a form of mta: beating it proves nothing."""
    scores = scored(twenty("population", 6), twenty("merged-only", 11), twenty("oppu", 17), twenty("mta", 20))
    assert scores["judged"]["best_rival"]["accuracy"] == "oppu"
    assert not is_proven(scores, "mta", "accuracy")
    alone = scored(twenty("population", 6), twenty("merged-only", 11), twenty("mta", 20))
    assert alone["judged"]["best_rival"]["accuracy"] is None
    assert not is_proven(alone, "mta", "accuracy")


def test_the_plan_names_everybody_the_best_rival_and_population() -> None:
    entries = {
        "base": {"metrics": {"accuracy": 0.9, "nll": 0.1}},
        "majority": {"metrics": {"accuracy": 0.2}},
        "rag-1": {"metrics": {"accuracy": 0.5, "nll": 1.0}},
        "oppu": {"metrics": {"accuracy": 0.5, "nll": 0.8}},
        "population": {"metrics": {"accuracy": 0.7, "nll": None}},
        "mta": {"metrics": {"accuracy": 0.6, "nll": 0.9}},
        "mta-linear": {"metrics": {"accuracy": 0.8, "nll": 0.2}},
    }
    plan = planned_comparisons(entries, "accuracy", method="mta")
    assert plan.others == ("base", "majority", "rag-1", "oppu", "population", "mta-linear")
    assert (plan.best_rival, plan.population) == ("rag-1", "population")  # rag-1 stands before its equal
    plan = planned_comparisons(entries, "nll", method="mta")
    assert (plan.best_rival, plan.population) == ("oppu", None)
    assert "majority" not in plan.others
    assert planned_comparisons({"mta": entries["mta"], "base": entries["base"]}, "nll", method="mta").best_rival is None
    with pytest.raises(NotFound, match="unknown method to compare 'proper'"):
        planned_comparisons(entries, "nll", method="proper")


def test_the_judged_method_is_compared_with_every_other_one() -> None:
    scores = scored(twenty("base", 2), twenty("rag-1", 5), twenty("population", 4), twenty("mta", 19))
    assert scores["judged"] == {
        "method": "mta",
        "population": "population",
        "best_rival": {"accuracy": "rag-1", "label_accuracy": "rag-1", "nll": "rag-1"},
    }
    rows = [row for row in scores["comparisons"] if row["metric"] == "accuracy"]
    assert [(row["a"], row["b"]) for row in rows] == [("mta", name) for name in ("base", "rag-1", "population")]
    assert [row["role"] for row in comparison_rows(scores)][:4:3] == ["", "best rival"]
    assert "mta - rag-1, best rival |" in markdown_comparisons(scores)
    with pytest.raises(NotFound, match="unknown method to compare 'mta'; known: base"):
        scored(twenty("base", 2))


def test_an_asterisk_needs_a_gain_over_both_opponents() -> None:
    scores = scored(twenty("base", 2), twenty("rag-1", 5), twenty("population", 4), twenty("mta", 19))
    assert is_proven(scores, "mta", "accuracy")
    assert not is_proven(scores, "mta", "nll")  # equal
    assert not is_proven(scores, "rag-1", "accuracy")
    table = markdown_table(scores)
    assert r"| mta | **0.950**\* [" in table
    assert table.count(r"\* [") == 1
    assert r"\*: mta beats both the best rival by that metric and population" in table
    page = render_report(scores=[scores], run_card={}).partition('id="run-1"')[2]
    assert page.count('<b>0.950</b><span class="star">*</span>') == page.count('<span class="star">') == 1
    assert "*" not in csv_table(scores)


@pytest.mark.parametrize(
    "records",
    [
        (twenty("rag-1", 5), twenty("population", 18), twenty("mta", 19)),  # no clear gain over population
        (twenty("rag-1", 18), twenty("population", 5), twenty("mta", 19)),  # nor over the best rival
        (twenty("rag-1", 19), twenty("population", 19), twenty("mta", 2)),  # a loss, as certain
        (twenty("rag-1", 5), twenty("mta", 19)),  # no population in the table
        (twenty("population", 5), twenty("classical", 5), twenty("mta", 19)),  # no rival
        (twenty("rag-1", 5), twenty("population", 13), *(twenty(f"lead{n}", 19) for n in range(9)), twenty("mta", 19)),
    ],
)
def test_no_asterisk_without_both(records: tuple[MethodRecord, ...]) -> None:
    scores = scored(*records)
    assert not is_proven(scores, "mta", "accuracy")
    assert r"\* [" not in markdown_table(scores)


def test_only_the_corrected_p_value_gives_an_asterisk() -> None:
    """6 of 20 people gain: p = 2 / 64 alone, but not among nine comparisons."""
    few = scored(twenty("rag-1", 13), twenty("population", 5), twenty("mta", 19))
    many = scored(
        twenty("rag-1", 13), twenty("population", 5), *(twenty(f"x{n}", 19) for n in range(7)), twenty("mta", 19)
    )
    for scores, proven in ((few, True), (many, False)):
        (row,) = [r for r in scores["comparisons"] if (r["b"], r["metric"]) == ("rag-1", "accuracy")]
        assert row["p_value"] < 0.05
        assert (row["p_holm"] < 0.05) == proven
        scores["judged"]["best_rival"]["accuracy"] = "rag-1"
        assert is_proven(scores, "mta", "accuracy") == proven


def test_the_legend_says_why_there_can_be_no_asterisk() -> None:
    assert "No asterisks: they say that mta beats" in markdown_table(scored(twenty("base", 2), twenty("mta", 19)))
    plain = markdown_table(scored(twenty("base", 2), twenty("mta", 19), judged=None))
    assert "sterisk" not in plain
    assert "Bold: best point estimate. Italics: second best." in plain


def test_second_best_is_marked_by_direction_and_ties_share_it() -> None:
    scores = scored(
        *(
            twenty("base", 5, nll=1.0),
            twenty("rag-1", 15, nll=2.0),
            twenty("oppu", 15, nll=0.5),
            twenty("mta", 19, nll=3.0),
        )
    )
    assert second_methods(scores, "accuracy") == {"rag-1", "oppu"}
    assert (best_methods(scores, "nll"), second_methods(scores, "nll")) == ({"oppu"}, {"base"})
    assert second_methods(scored(twenty("base", 5), twenty("mta", 6)), "accuracy") == set()
    assert second_methods(scored(*(twenty(name, 5) for name in ("x", "y", "mta"))), "accuracy") == set()
    assert "| rag-1 | *0.750* [" in markdown_table(scores)
    page = render_report(scores=[scores], run_card={}).partition('id="run-1"')[2]
    assert page.count("<u>0.750</u>") == 2
    assert "Underlined: second best." in page


# seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_are_scored_apart_and_one_answer_stands_for_all() -> None:
    shaky = [twenty("mta", right).predictions for right in (10, 14, 18)]
    mta = MethodRecord(
        name="mta",
        predictions=[row for run in shaky for row in run],
        seed_of=[seed for seed in (7, 8, 9) for _ in range(20)],
    )
    scores = scored(twenty("base", 5), twenty("oppu", 12, seeds=1), mta, seeds=[7, 8, 9])
    assert scores["queries"] == 20
    entry = scores["methods"]["mta"]
    assert (entry["seeds"], entry["by_seed"]["accuracy"]) == ([7, 8, 9], pytest.approx([0.5, 0.7, 0.9]))
    assert entry["seed_sd"]["accuracy"] == pytest.approx(0.2)
    oppu, base = scores["methods"]["oppu"], scores["methods"]["base"]
    assert (oppu["seeds"], oppu["by_seed"]["accuracy"], oppu["seed_sd"]) == ([0], [0.6], None)
    assert (base["seeds"], base["by_seed"], base["seed_sd"]) == ([], {}, None)
    accuracy = [row for row in scores["comparisons"] if row["metric"] == "accuracy"]
    assert [(row["difference"], row["queries"]) for row in accuracy] == [
        (pytest.approx(0.45), 20),
        (pytest.approx(0.1), 20),
    ]
    assert method_notes(scores) == ["sd: standard deviation between the scores of the seeds."]
    assert "sd 0.200" in next(line for line in markdown_table(scores).splitlines() if line.startswith("| mta"))
    rows = list(csv.DictReader(io.StringIO(csv_table(scores))))
    assert [row["accuracy_seed_sd"] for row in rows[:2]] == ["", ""]
    assert float(rows[2]["accuracy_seed_sd"]) == pytest.approx(0.2)
    assert "Answered once, beside every seed of the others: base, oppu." in comparability(scores)
    json.dumps(scores, allow_nan=False)


def test_several_seeds_must_be_the_same_for_all() -> None:
    one = twenty("oppu", 5, seeds=2)
    other = MethodRecord(name="mta", predictions=one.predictions, seed_of=[1] * 20 + [2] * 20)
    with pytest.raises(DataError, match=r"method 'oppu' has the seeds \[0, 1\] and method 'mta' has \[1, 2\]"):
        scored(one, other)
    with pytest.raises(DataError, match=r"method 'mta' has \[\]"):
        scored(one, MethodRecord(name="mta", predictions=one.predictions))
    with pytest.raises(DataError, match=r"method 'oppu' and method 'mta' cannot be paired"):
        scored(twenty("oppu", 5, seeds=3), twenty("mta", 5, seeds=2))


@pytest.mark.parametrize(
    ("people", "comparisons", "said"),
    [(4, 1, "0.125 or more"), (6, 1, None), (6, 25, "0.781 or more"), (40, 25, None), (10**400, 25, None)],
)
def test_too_few_people_for_any_difference_to_count_are_said(people: int, comparisons: int, said: str | None) -> None:
    rows = [{"a": "mta", "b": f"rival {place}", "metric": "nll", "p_holm": 1.0} for place in range(comparisons)]
    line = comparison_line({"people": people, "comparisons": rows})
    assert said in line if said else "nothing can count" not in line
