"""People who judge, and what they are asked beside their own question."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta.data.personas import make_personas
from mta.judges import MORE_QUESTIONS, asked_more, question_like
from mta.tasks import get_task
from mta.tasks.examples import query_examples


@pytest.mark.parametrize("task_id", ["lamp-2", "lamp-3", "lamp-4", "lamp-5"])
@pytest.mark.parametrize("items", [2, 7, 30])
def test_judges_are_asked_about_items_they_no_longer_have(task_id: str, items: int) -> None:
    task = get_task(task_id)
    (judge,) = make_personas(task_id, people=1, history=(items, items), queries=1, seed=0).users
    found = asked_more(judge, task)
    count = min(MORE_QUESTIONS, items // 3)
    assert found.history == judge.history[count:]
    assert found.queries[:1] == judge.queries
    assert len(found.queries) == 1 + count
    own = {item.item_id: item for item in judge.history[:count]}
    for example in query_examples(task, found, history_k=1)[1:]:
        item = own[example.example_id.rsplit(" ", 1)[1]]
        assert example.answer == task.normal_answer(item.get(task.output_field))
        assert next(iter(example.fields.values())) in item.fields.values(), "in the words of a real question"


def test_a_question_of_several_texts_is_not_asked_about_items() -> None:
    task = get_task("lamp-1")
    (judge,) = make_personas("lamp-1", people=1, history=(9, 9), queries=1, seed=0).users
    assert asked_more(judge, task) == judge
    fields = task.parse_query(judge.queries[0].text)
    assert question_like(judge.queries[0], fields, task) is None


def test_a_question_that_does_not_end_with_its_text_has_no_likes() -> None:
    task = get_task("lamp-4")
    (judge,) = make_personas("lamp-4", people=1, history=(6, 6), queries=1, seed=0).users
    query = judge.queries[0]
    ((name, value),) = task.parse_query(query.text).items()
    assert question_like(query, {name: "other words"}, task) == query.text[: -len(value)] + "other words"
    odd = replace(query, text=f"{query.text} ")
    assert question_like(odd, {name: "other words"}, task) in (None, f"{query.text[: -len(value)]}other words")
