from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mta.errors import ConfigError, DataError
from mta.evaluation.report import render_report
from mta.evaluation.scores import MethodRecord, build_scores
from mta.evaluation.scores_file import check_scores
from mta.evaluation.slices import (
    SEEN,
    UNSEEN,
    by_history_length,
    by_seen_text,
    by_similarity,
    slice_scores,
    usual_partitions,
)
from mta.evaluation.statistics import score_predictions
from mta.evaluation.table import markdown_slices, slice_tables
from mta.records import HistoryItem, Prediction, Query, User
from mta.tasks import TASKS, get_task

LABELS = ["a", "b"]


def user(user_id: str, items: int, queries: int = 1) -> User:
    history = tuple(HistoryItem(str(place), {}) for place in range(items))
    return User(user_id, history, tuple(Query(f"q{place}", "", "a") for place in range(queries)))


def record(name: str, texts: dict[str, str], *, nll: float | None = None, **more: Any) -> MethodRecord:
    """One method; each user's letters are the answers to q0, q1, ..., and "a" is right."""
    rows = [
        Prediction(f"q{place}", user_id, "a", text, nll=nll)
        for user_id, letters in texts.items()
        for place, text in enumerate(letters)
    ]
    return MethodRecord(name=name, predictions=rows, **more)


ANSWERS = {"u0": "ab", "u1": "a", "u2": "bb", "u3": "aa"}
NEAR = {("u0", "q0"): "near", ("u0", "q1"): "far", ("u1", "q0"): "near", ("u2", "q0"): "far", ("u2", "q1"): "far"}
PARTITION = {**NEAR, ("u3", "q0"): "near", ("u3", "q1"): "far"}


# scores on slices -------------------------------------------------------------------------------------------------


def test_scores_of_slices_by_hand() -> None:
    found = slice_scores([record("mta", ANSWERS)], {"distance": PARTITION}, metrics=["accuracy"], labels=LABELS)
    assert list(found) == ["distance"]
    assert list(found["distance"]) == ["near", "far"]
    near, far = found["distance"].values()
    assert (near["people"], near["queries"]) == (3, 3)
    assert (far["people"], far["queries"]) == (3, 4)
    assert near["methods"]["mta"] == {"metrics": {"accuracy": 1.0}, "ci95": {"accuracy": [1.0, 1.0]}}
    assert far["methods"]["mta"]["metrics"]["accuracy"] == 0.25


def test_intervals_of_slices_agree_with_drawing_people_one_by_one() -> None:
    rng = random.Random(4)
    answers = {f"u{person}": "".join(rng.choices("ab", k=1 + person % 4)) for person in range(12)}
    partition = {
        (user_id, f"q{place}"): rng.choice(["x", "y"])
        for user_id, text in answers.items()
        for place in range(len(text))
    }
    found = slice_scores([record("m", answers)], {"p": partition}, metrics=["accuracy"], labels=LABELS, resamples=6000)
    for label, entry in found["p"].items():
        people = [
            [text == "a" for place, text in enumerate(letters) if partition[user_id, f"q{place}"] == label]
            for user_id, letters in answers.items()
        ]
        people = [hits for hits in people if hits]
        assert (entry["people"], entry["queries"]) == (len(people), sum(map(len, people)))
        means = []
        for _ in range(4000):
            drawn = list(itertools.chain.from_iterable(rng.choice(people) for _ in people))
            means.append(sum(drawn) / len(drawn))
        slow = tuple(np.percentile(means, [2.5, 97.5]))
        assert entry["methods"]["m"]["ci95"]["accuracy"] == pytest.approx(slow, abs=0.03)


def test_one_slice_of_all_queries_is_the_whole_and_slices_add_up() -> None:
    whole = record("mta", ANSWERS, nll=2.0)
    partitions = {"one": dict.fromkeys(PARTITION, "all"), "two": PARTITION}
    found = slice_scores([whole], partitions, metrics=["accuracy"], labels=LABELS, seed=3)
    scores = score_predictions(whole.predictions, metrics=["accuracy"], labels=LABELS, seed=3)
    entry = found["one"]["all"]
    assert (entry["people"], entry["queries"]) == (scores.people, scores.queries)
    assert entry["methods"]["mta"]["metrics"] == scores.metrics
    assert {name: tuple(pair) for name, pair in entry["methods"]["mta"]["ci95"].items()} == scores.ci95
    right = sum(part["queries"] * part["methods"]["mta"]["metrics"]["accuracy"] for part in found["two"].values())
    assert right / scores.queries == pytest.approx(scores.metrics["accuracy"])
    assert sum(part["queries"] for part in found["two"].values()) == scores.queries


def test_slices_count_queries_once_over_seeds_and_siblings_as_one() -> None:
    once = record("base", ANSWERS)
    thrice = MethodRecord(
        name="mta", predictions=list(once.predictions) * 3, seed_of=[s for s in range(3) for _ in range(7)]
    )
    for records in ([once, thrice], [thrice, once]):
        found = slice_scores(
            records, {"p": PARTITION}, metrics=["accuracy"], labels=LABELS, people={"u1": "u0", "u3": "u0"}
        )
        assert (found["p"]["near"]["people"], found["p"]["near"]["queries"]) == (1, 3)
        assert found["p"]["near"]["methods"]["mta"]["ci95"] == {"accuracy": None}
        assert (found["p"]["far"]["people"], found["p"]["far"]["queries"]) == (2, 4)
        assert found["p"]["far"]["methods"]["mta"] == found["p"]["far"]["methods"]["base"]


def test_a_query_without_a_label_is_refused_and_labels_without_a_query_are_left_out() -> None:
    with pytest.raises(DataError, match=r"partition 'p' has 5 queries, but none is query 'q0' of user 'u3'.*'mta'"):
        slice_scores([record("mta", ANSWERS)], {"p": NEAR}, metrics=["accuracy"], labels=LABELS)
    more = {("nobody", "q0"): "empty", **PARTITION}
    found = slice_scores([record("mta", ANSWERS)], {"p": more}, metrics=["accuracy"], labels=LABELS)
    assert list(found["p"]) == ["near", "far"]


# partitions -------------------------------------------------------------------------------------------------------


def sizes(partition: dict[tuple[str, str], str]) -> dict[str, int]:
    return {label: list(partition.values()).count(label) for label in dict.fromkeys(partition.values())}


def test_history_lengths_in_thirds_with_their_bounds() -> None:
    users = [user(f"u{items}", items) for items in (9, 1, 5, 2, 8, 3, 7, 4, 6)]
    found = by_history_length(users)
    assert sizes(found) == {"low: 1 to 3 items": 3, "middle: 4 to 6 items": 3, "high: 7 to 9 items": 3}
    assert found["u4", "q0"] == "middle: 4 to 6 items"


@pytest.mark.parametrize(
    ("lengths", "labels"),
    [
        ([10] * 7, ["all: 10 items"]),
        ([10, 10, 10, 10, 50], ["low: 10 items", "high: 50 items"]),
        ([10, 10, 10, 10, 10, 10, 20, 50], ["low: 10 items", "high: 20 to 50 items"]),
        ([3], ["all: 3 items"]),
        ([3, 5], ["low: 3 items", "high: 5 items"]),
        ([1, 2, 3, 4], ["low: 1 to 2 items", "middle: 3 items", "high: 4 items"]),
        ([], []),
    ],
)
def test_equal_lengths_stay_in_one_slice(lengths: Sequence[int], labels: list[str]) -> None:
    found = by_history_length([user(f"u{place}", items) for place, items in enumerate(lengths)])
    assert list(sizes(found)) == labels


@pytest.mark.parametrize("seed", range(8))
def test_thirds_are_ordered_disjoint_and_as_even_as_ties_allow(seed: int) -> None:
    rng = random.Random(seed)
    values = {f"u{place}": rng.choice([rng.random(), 0.5]) for place in range(rng.randint(3, 40))}
    found = by_similarity([user(user_id, 1) for user_id in values], values)
    groups = [[values[user_id] for (user_id, _), label in found.items() if label == wanted] for wanted in sizes(found)]
    assert sum(map(len, groups)) == len(values)
    assert all(max(low) < min(high) for low, high in itertools.pairwise(groups))
    if len(set(values.values())) == len(values):
        assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_users_without_queries_decide_no_bounds_and_every_query_has_its_users_label() -> None:
    users = [user("a", 1, 2), user("b", 2), user("c", 3), user("silent", 900, 0)]
    found = by_history_length(users)
    assert list(found.values()) == ["low: 1 items", "low: 1 items", "middle: 2 items", "high: 3 items"]
    assert by_similarity(users, {"a": 0.1, "b": 0.2, "c": 0.3}).keys() == found.keys()


def test_named_bins_of_history_lengths() -> None:
    users = [user(f"u{items}", items) for items in (200, 10, 11, 50, 51, 1)]
    found = by_history_length(users, bins={"short": 10, "medium": 50, "long": math.inf})
    assert sizes(found) == {"short: 0 to 10 items": 2, "medium: 11 to 50 items": 2, "long: 51 items or more": 2}
    assert found["u50", "q0"].startswith("medium")
    for bins in ({"short": 10}, {"a": 10, "b": 10, "c": math.inf}, {"b": 20, "a": 10, "c": math.inf}, {}):
        with pytest.raises(ConfigError, match="wanted name -> most items, ascending"):
            by_history_length(users, bins=bins)


def test_similarities_in_thirds() -> None:
    users = [user(f"u{place}", 1) for place in range(6)]
    found = by_similarity(users, {f"u{place}": 0.1 * place for place in range(6)})
    assert list(sizes(found)) == ["low: 0.000 to 0.100", "middle: 0.200 to 0.300", "high: 0.400 to 0.500"]
    for lacking in ({}, {f"u{place}": math.nan for place in range(6)}):
        with pytest.raises(DataError, match=r"user 'u0' has no similarity to an anchor \(there are \d\)"):
            by_similarity(users, lacking)


FILM = "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
FILM += "explanation. tags: [comedy, classic] description: {}"


def film(text: str) -> Query:
    return Query("q0", FILM.format(text), "comedy")


def test_a_text_is_seen_whatever_its_case_and_spacing() -> None:
    task = get_task("lamp-2")
    holder = User("h", (HistoryItem("1", {"description": "A  robot\nLearns to JOKE. ", "tag": "classic"}),))
    blank = User("b", (HistoryItem("1", {"description": " ", "tag": "A tailor."}),))
    users = [
        User("new", (), (film("A tailor."),)),
        User("known", (), (film("a robot learns to joke."),)),
        User("longer", (), (film("A robot learns to joke. Then more."),)),
    ]
    found = by_seen_text(task, users, [holder, blank])
    assert found == {("known", "q0"): SEEN, ("new", "q0"): UNSEEN, ("longer", "q0"): UNSEEN}
    assert next(iter(found.values())) == SEEN
    assert set(by_seen_text(task, users, [])) == set(found)
    assert set(by_seen_text(task, users, []).values()) == {UNSEEN}


def test_every_task_has_a_text_to_look_for() -> None:
    for task_id, question in QUESTIONS.items():
        task = get_task(task_id)
        asked = User("u", (), (Query("q0", question, None),))
        text = task.parse_query(question)[task.input_field]
        holder = User("h", (HistoryItem("1", {task.input_field: text.upper()}),))
        assert by_seen_text(task, [asked], [holder]) == {("u", "q0"): SEEN}
    assert QUESTIONS.keys() == TASKS.keys()


QUESTIONS = {
    "lamp-1": 'For an author who has written the paper with the title "On tailors", which reference is related? Just '
    'answer with [1] or [2] without explanation. [1]: "Circus" [2]: "Robots"',
    "lamp-2": FILM.format("A tailor."),
    "lamp-3": "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 "
    "without further explanation. review: Fine tea.",
    "lamp-4": "Generate a headline for the following article: It rained.",
    "lamp-5": "Generate a title for the following abstract of a paper: We prove it.",
    "own": "Are you coming on Monday?",
    "own-by-id": "Are you coming on Monday?",
}


def test_the_usual_partitions() -> None:
    task = get_task("lamp-2")
    pool = [User(name, (HistoryItem("1", {"description": text, "tag": "classic"}),)) for name, text in ("xX", "yY")]
    targets = [User(text, pool[0].history, (film(text),)) for text in "XYZ"]
    found = usual_partitions(task, targets, pool=pool, anchors=pool[:1], similarities={"X": 0.1, "Y": 0.2, "Z": 0.3})
    assert list(found) == [
        "history length",
        "similarity to the nearest anchor",
        "text in an anchor's history",
        "text in a pool user's history",
    ]
    assert all(partition.keys() == {(text, "q0") for text in "XYZ"} for partition in found.values())
    assert sizes(found["text in an anchor's history"]) == {SEEN: 1, UNSEEN: 2}
    assert sizes(found["text in a pool user's history"]) == {SEEN: 2, UNSEEN: 1}


# tables -----------------------------------------------------------------------------------------------------------


def sliced() -> dict[str, Any]:
    records = [record("majority", ANSWERS), record("mta|x", dict.fromkeys(ANSWERS, "aa") | {"u1": "a"}, nll=0.5)]
    scores = build_scores("lamp-2", records, base="b", seeds=[1], metrics=["accuracy", "macro_f1"], labels=LABELS)
    partitions = {"distance": PARTITION, "<b>": dict.fromkeys(PARTITION, "all | *")}
    scores["slices"] = slice_scores(records, partitions, metrics=["accuracy", "macro_f1"], labels=LABELS)
    return scores


def test_slices_are_kept_in_the_file() -> None:
    scores = sliced()
    assert check_scores(json.loads(json.dumps(scores, allow_nan=False))) == scores


def test_markdown_slices_show_the_main_metric_and_the_nll() -> None:
    text = markdown_slices(sliced())
    lines = text.splitlines()
    assert lines[0] == r"Not sliced: by \<b> all are one slice, all \| \*."
    lines = lines[2:]
    assert lines[0] == "By distance: near (3 people, 3 queries); far (3 people, 4 queries)."
    assert lines[2] == "| method | near, Acc ↑ | near, NLL ↓ | far, Acc ↑ | far, NLL ↓ |"
    assert lines[4].startswith("| majority | 1.000 [1.000, 1.000] | – | 0.250 [")
    assert lines[5].startswith(r"| mta\|x | 1.000 [1.000, 1.000] | 0.500 [0.500, 0.500] | 1.000")
    assert {line.count(" | ") for line in lines[2:6]} == {4}
    assert "corrected for nothing" in lines[-1]


def test_slices_on_the_page() -> None:
    page = render_report(scores=[sliced()], run_card={})
    assert "<h4>By distance</h4>" in page
    assert "Not sliced: by &lt;b&gt; all are one slice, all | *." in page
    assert '<th scope="colgroup" colspan="2">near<span class="range">3 people, 3 queries</span></th>' in page
    assert "corrected for nothing" in page


def test_a_partition_without_slices_has_no_table_and_a_method_without_answers_a_dash() -> None:
    scores = sliced()
    scores["slices"] = {"empty": {}, "distance": scores["slices"]["distance"]}
    del scores["slices"]["distance"]["near"]["methods"]["majority"]
    (table,) = slice_tables(scores)
    assert table.rows["majority"][:2] == (("–", ""), ("–", ""))
