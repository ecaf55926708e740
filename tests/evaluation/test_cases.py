"""Answers side by side: whose, which, and what is shown of a person."""

from __future__ import annotations

import pytest

from mta.errors import NotFound
from mta.evaluation.cases import COUNT, build_cases
from mta.records import Prediction
from mta.tasks import get_task
from small_run import small_world


def answers(**texts: dict[tuple[str, str], str]) -> dict[str, list[Prediction]]:
    return {
        method: [Prediction(query, user, "gold", text) for (user, query), text in rows.items()]
        for method, rows in texts.items()
    }


def test_disagreement_is_shown_first_and_nobody_twice() -> None:
    base = {("ann", "1"): "a", ("ann", "2"): "a", ("bob", "3"): "a", ("cal", "4"): "a", ("dan", "5"): "a"}
    cases = build_cases(answers(base=base, mta={**base, ("ann", "2"): "b", ("dan", "5"): "b"}))
    assert [case["title"] for case in cases] == ["User ann", "User dan", "User bob"]
    assert cases[0]["answers"] == {"base": "a", "mta": "b"}
    assert len(cases) == COUNT


def test_named_users_are_shown_with_all_their_questions() -> None:
    rows = {("ann", "1"): "a", ("bob", "2"): "b", ("ann", "3"): "c"}
    cases = build_cases(answers(mta=rows), users=["bob", "ann"])
    assert [(case["title"], case["answers"]["mta"]) for case in cases] == [
        *(("User bob", "b"), ("User ann", "a"), ("User ann", "c"))
    ]
    assert {case["query"] for case in cases} == {None}, "the text is in the data file alone"
    with pytest.raises(NotFound, match="user 'eve' has no answers here; there are 2 users: ann, bob"):
        build_cases(answers(mta=rows), users=["eve"])


def test_question_and_history_come_from_the_data() -> None:
    _, (ann, *_) = small_world("lamp-2")
    query = ann.queries[0]
    rows = {(ann.user_id, query.query_id): "comedy"}
    (case,) = build_cases(answers(mta=rows), task=get_task("lamp-2"), people=[ann])
    assert (case["query"], case["gold"]) == (query.text, "gold")
    assert len(case["history"]) == 3
