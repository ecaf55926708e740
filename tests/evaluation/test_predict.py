"""Answers and likelihoods against a slow model: adapters as dense weights, one row at a time, no cache."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers import random_adapter, tiny_base
from mta.base_model import BaseModel
from mta.config import ALL_LINEAR, EngineConfig, PromptConfig
from mta.data.personas import make_personas
from mta.errors import DataError
from mta.evaluation import predict as module
from mta.evaluation.predict import predict
from mta.lora.adapter import Adapter, AdapterSum, Recipe, recipe
from mta.personalize import Personalized, renderer
from mta.prompting import render
from mta.records import Example, Query, User
from mta.tasks import get_task
from mta.tasks.examples import query_examples
from mta.tasks.task import Task

ENGINE = EngineConfig(predict_tokens_per_batch=1500)
PROMPTS = PromptConfig(history_k=1, history_words=12, template="plain", max_tokens=1024)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base(torch.float64)


def crowd(base: BaseModel, task_id: str, *, people: int = 4, queries: int = 2) -> list[Personalized]:
    """People with adapters of their own, one with the bare base model, two with one adapter between them."""
    task = get_task(task_id)
    users = make_personas(task_id, people=people, history=4, queries=queries, seed=0).users
    own = [recipe(random_adapter(base, ALL_LINEAR, seed=seed, rank=2 + seed, size=0.3)) for seed in range(people)]
    own[-1] = own[0]
    render_one = renderer(task, PROMPTS)
    return [
        Personalized(user, task, None if place == 1 else own[place], render_one, PROMPTS)
        for place, user in enumerate(users)
    ]


# slow and plain ---------------------------------------------------------------------------------------------------


def dense(base: BaseModel, adapter: Adapter | None) -> Any:
    """A copy of the model with the adapter added to its weights."""
    model = copy.deepcopy(base.model)
    for name in adapter.modules if adapter else ():
        model.get_submodule(name).weight.data += adapter.delta(name)
    return model


def log_prob(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, :-1].double()
    picked = logits.log_softmax(-1).gather(1, torch.tensor([prompt + answer])[0, 1:, None])[:, 0]
    return float(picked[-len(answer) :].sum())


def greedy(model: Any, prompt: list[int], *, end: int, longest: int) -> list[int]:
    written: list[int] = []
    while len(written) < longest:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([prompt + written])).logits[0, -1].argmax())
        if token == end:
            break
        written.append(token)
    return written


def questions(one: Personalized) -> tuple[Example, ...]:
    return query_examples(one.task, one.user, history_k=PROMPTS.history_k)


def prompt_of(base: BaseModel, task: Task, example: Example) -> list[int]:
    return base.tokens.tokenizer(render(task, example, PROMPTS).text).input_ids


def label_ids(base: BaseModel, label: str) -> list[int]:
    return [*base.tokens.tokenizer(f" {label}", add_special_tokens=False).input_ids, base.tokens.end_id]


# labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ["lamp-1", "lamp-3"])
def test_labels_and_their_likelihoods_equal_the_slow_models(base, task_id: str) -> None:
    people = crowd(base, task_id)
    found = {row.query_id: row for row in predict(people, base=base, engine=ENGINE).rows}
    for one in people:
        model = dense(base, one.adapter.make() if one.adapter else None)
        for example in questions(one):
            prompt, row = prompt_of(base, one.task, example), found[example.example_id]
            scores = {label: log_prob(model, prompt, label_ids(base, label)) for label in one.task.labels}
            assert row.label_scores == pytest.approx(scores, abs=1e-9)
            assert row.label == max(scores, key=lambda label: scores[label])
            among = math.log(sum(math.exp(score) for score in scores.values()))
            assert row.nll == pytest.approx(among - scores[example.answer], abs=1e-9)
            assert (row.gold, row.nll_tokens, row.user_id) == (example.answer, 1, one.user.user_id)
            assert sum(math.exp(-nll) for nll in golds(one, example, base)) == pytest.approx(1.0)


def golds(one: Personalized, example: Example, base: BaseModel) -> list[float]:
    """Negative log-likelihoods of a query, were each of the labels its answer."""
    query = next(query for query in one.user.queries if query.query_id == example.example_id)
    asked = tuple(replace(query, query_id=label, gold=label) for label in one.task.labels)
    people = [replace(one, user=replace(one.user, queries=asked))]
    return [row.nll for row in predict(people, base=base, engine=ENGINE).rows if row.nll is not None]


# free text --------------------------------------------------------------------------------------------------------


def test_texts_and_their_likelihoods_equal_the_slow_models(base) -> None:
    people = crowd(base, "own", people=3)
    found = {row.query_id: row for row in predict(people, base=base, engine=ENGINE).rows}
    task = get_task("own")
    for one in people:
        model = dense(base, one.adapter.make() if one.adapter else None)
        for example in questions(one)[:1]:
            prompt, row = prompt_of(base, task, example), found[example.example_id]
            written = greedy(model, prompt, end=base.tokens.end_id, longest=task.max_new_tokens)
            assert row.text == task.clean(base.tokens.decode(written))
            answer = label_ids(base, example.answer)
            assert row.nll == pytest.approx(-log_prob(model, prompt, answer), abs=1e-8)
            assert row.nll_tokens == len(answer)
            assert (row.label, row.label_scores) == (None, {})
    assert len({row.text for row in found.values()}) > 1, "adapters that change nothing would show nothing"


def test_the_text_of_a_labelled_answer_is_cleaned(base) -> None:
    people = [replace(one, task=replace(one.task, clean=lambda text: f"<{text[:3]}>")) for one in crowd(base, "lamp-3")]
    rows = predict(people, base=base, engine=ENGINE).rows
    assert all(row.text.startswith("<") and row.text.endswith(">") for row in rows)


# the same in any packing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", ["lamp-3", "own"])
def test_chunks_and_batches_do_not_matter(base, monkeypatch, task_id: str) -> None:
    people = crowd(base, task_id, people=5)
    wanted = predict(people, base=base, engine=ENGINE)
    for chunk, tokens in ((1, 1), (2, 900), (3, 10**6)):
        monkeypatch.setattr(module, "USERS_PER_CHUNK", chunk)
        found = predict(people, base=base, engine=EngineConfig(predict_tokens_per_batch=tokens))
        for mine, theirs in zip(found.rows, wanted.rows, strict=True):
            assert (mine.query_id, mine.user_id, mine.text, mine.label) == (
                theirs.query_id, theirs.user_id, theirs.text, theirs.label
            )  # fmt: skip
            assert mine.nll == pytest.approx(theirs.nll, abs=1e-9)
            assert mine.label_scores == pytest.approx(dict(theirs.label_scores), abs=1e-9)


def test_rows_keep_the_order_of_people_and_queries(base) -> None:
    people = crowd(base, "lamp-3")
    rows = predict(people, base=base, engine=ENGINE).rows
    asked = [(one.user.user_id, query.query_id) for one in people for query in one.user.queries]
    assert [(row.user_id, row.query_id) for row in rows] == asked


def test_progress_rises_to_all_queries(base, monkeypatch) -> None:
    monkeypatch.setattr(module, "USERS_PER_CHUNK", 2)
    heard: list[tuple[int, int]] = []
    predict(crowd(base, "lamp-3"), base=base, engine=ENGINE, step=lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    assert heard[-1] == (8, 8)
    assert len({done for done, _ in heard}) >= 2


def counted(one: Recipe, made: list[str]) -> Recipe:
    def parts() -> AdapterSum:
        made.append(one.fingerprint)
        return one.parts()

    return Recipe(one.fingerprint, one.rank, parts)


def test_an_adapter_is_made_once_and_only_where_something_is_asked(base) -> None:
    made: list[str] = []
    people = crowd(base, "lamp-3")
    people = [replace(one, adapter=counted(one.adapter, made) if one.adapter else None) for one in people]
    silent = replace(people[2], user=replace(people[2].user, queries=()))
    predict([*people[:2], silent, people[3]], base=base, engine=ENGINE)
    assert people[0].adapter is not None
    assert made == [people[0].adapter.fingerprint], "the first and the last share one; the third asks nothing"


# what is missing --------------------------------------------------------------------------------------------------


def without_golds(user: User) -> User:
    return replace(user, queries=tuple(Query(query.query_id, query.text) for query in user.queries))


@pytest.mark.parametrize("task_id", ["lamp-3", "own"])
def test_unknown_golds_have_no_likelihood_and_change_nothing_else(base, task_id: str) -> None:
    people = crowd(base, task_id, people=3)
    known = predict(people, base=base, engine=ENGINE).rows
    mixed = [replace(one, user=without_golds(one.user)) if place == 1 else one for place, one in enumerate(people)]
    for mine, theirs in zip(predict(mixed, base=base, engine=ENGINE).rows, known, strict=True):
        hidden = mine.user_id == people[1].user.user_id
        assert mine.gold == ("" if hidden else theirs.gold)
        assert mine.nll == (None if hidden else pytest.approx(theirs.nll, abs=1e-9))
        assert (mine.text, mine.label) == (theirs.text, theirs.label)
    everybody = [replace(one, user=without_golds(one.user)) for one in people]
    assert all(row.nll is None for row in predict(everybody, base=base, engine=ENGINE).rows)


def test_nobody_and_nothing_asked_give_nothing(base) -> None:
    assert predict([], base=base, engine=ENGINE).rows == ()
    silent = [replace(one, user=replace(one.user, queries=())) for one in crowd(base, "lamp-3")]
    assert predict(silent, base=base, engine=ENGINE).rows == ()


def test_a_gold_answer_that_is_no_label_is_refused(base) -> None:
    (one, *_) = crowd(base, "lamp-3")
    wrong = replace(one, user=replace(one.user, queries=(replace(one.user.queries[0], gold="seven"),)))
    with pytest.raises(DataError, match="'seven' is not one of 1, 2, 3, 4, 5"):
        predict([wrong], base=base, engine=ENGINE)


def limited(max_tokens: int) -> Callable[[Personalized], Personalized]:
    return lambda one: replace(one, prompts=replace(PROMPTS, max_tokens=max_tokens))


def test_cut_prompts_are_counted_and_leave_room_for_the_answer(base) -> None:
    people = crowd(base, "lamp-3")
    lengths = [len(prompt_of(base, one.task, example)) for one in people for example in questions(one)]
    reserve = people[0].task.max_new_tokens
    assert predict(people, base=base, engine=ENGINE).cut_prompts == 0
    limit = sorted(lengths)[3] + reserve
    found = predict([limited(limit)(one) for one in people], base=base, engine=ENGINE)
    assert found.cut_prompts == sum(length + reserve > limit for length in lengths)
    assert 0 < found.cut_prompts < len(lengths)
