"""Answers of personalized users to their queries, with what is needed to score them.

Label and rating tasks: greedy text, and every label's log-probability, from which the gold label's likelihood among the
labels. Free text: greedy text, and the likelihood of the gold answer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mta.base_model import BaseModel
from mta.candidates import TEMPERATURES
from mta.config import EngineConfig
from mta.generation import Answered, Asked, Mixture, Request, answer_and_score
from mta.lora.stacked import Finished
from mta.packing import TokenRow
from mta.personalize import Personalized
from mta.progress import Step
from mta.prompt_tokens import PromptTokenizer
from mta.records import Example, Prediction
from mta.tasks.examples import query_examples
from mta.tasks.task import Task

USERS_PER_CHUNK = 32
"""Users whose adapters are held in memory at once."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """All answers of one method."""

    rows: tuple[Prediction, ...]
    cut_prompts: int
    """Queries whose prompt was cut to fit the model."""


def predict(
    people: Sequence[Personalized], *, base: BaseModel, engine: EngineConfig, step: Step | None = None
) -> Predictions:
    """Answer every query of every person, before a method's last change (`finish`).

    Args:
        people: personalized users of one task.
        base: the frozen model; methods with answers of their own do not ask it.
        engine: packing.
        step: called with (queries answered, queries in all).
    """
    rows: list[Prediction] = []
    cut = 0
    total = sum(len(person.user.queries) for person in people)
    for start in range(0, len(people), USERS_PER_CHUNK):
        chunk = people[start : start + USERS_PER_CHUNK]
        asked = _ask([person for person in chunk if person.answers is None], base.tokens)
        if asked:
            rows += _predict(people[0], asked, base, engine, partial(_pass_on, step, len(rows), total))
        for person in chunk:
            rows += person.answers(examples_of(person)) if person.answers else ()
        cut += sum(any(row.cut_words > 0 for row in _rows(request)) for _, request in asked)
    return Predictions(tuple(rows), cut)


def finished(people: Mapping[str, Personalized], rows: Sequence[Prediction]) -> list[Prediction]:
    """Apply each person's last change to the answers."""
    return [change(row) if (change := people[row.user_id].finish) else row for row in rows]


def _pass_on(step: Step | None, done_before: int, total: int, done: int) -> None:
    if step:
        step(done_before + done, total)


def examples_of(person: Personalized) -> tuple[Example, ...]:
    """Return a person's queries with the items shown beside each."""
    return query_examples(person.task, person.user, history_k=person.prompts.history_k, retriever=person.retriever)


def _ask(people: Sequence[Personalized], tokens: PromptTokenizer) -> list[tuple[Example, Asked]]:
    """Turn queries into requests, or mixtures of them; people who share an adapter share one copy of it."""
    made: dict[str, Finished] = {}
    asked: list[tuple[Example, Asked]] = []
    for person in people:
        if not person.mixture:
            asked += _requests(person, tokens, made)
            continue
        shares = tuple(share for share, _ in person.mixture)
        ways = [_requests(way, tokens, made) for _, way in person.mixture]
        asked += [
            (each[0][0], Mixture(tuple(request for _, request in each), shares)) for each in zip(*ways, strict=True)
        ]
    return asked


def _requests(
    person: Personalized, tokens: PromptTokenizer, made: dict[str, Finished]
) -> list[tuple[Example, Request]]:
    examples = examples_of(person)
    if person.adapter and examples and person.adapter.fingerprint not in made:
        made[person.adapter.fingerprint] = person.adapter.parts()
    adapter = made.get(person.adapter.fingerprint) if person.adapter else None
    return [(example, Request(_row(person, example, tokens), adapter)) for example in examples]


def _row(person: Personalized, example: Example, tokens: PromptTokenizer) -> TokenRow:
    labels = (len(tokens.answer_ids(label, person.prompts)) for label in person.task.labels)
    reserve = max(person.task.max_new_tokens, *labels, 0)
    row = tokens.row(person.render(example), None, person.prompts, reserve=reserve)  # the gold must not decide the cut
    return replace(row, answer=tokens.answer_ids(example.answer, person.prompts))


def _rows(asked: Asked) -> list[TokenRow]:
    return [request.row for request in (asked.requests if isinstance(asked, Mixture) else (asked,))]


def _predict(
    like: Personalized,
    asked: Sequence[tuple[Example, Asked]],
    base: BaseModel,
    engine: EngineConfig,
    on_progress: Callable[[int], None],
) -> list[Prediction]:
    task = like.task
    examples, requests = [example for example, _ in asked], [request for _, request in asked]
    labels = [base.tokens.answer_ids(label, like.prompts) for label in task.labels]
    answered = answer_and_score(
        base,
        requests,
        [labels or [_rows(request)[0].answer] for request in requests],
        max_new_tokens=task.max_new_tokens,
        engine=engine,
        repetition_penalty=task.repetition_penalty,
        temperatures=() if labels else TEMPERATURES,
        on_progress=on_progress,
    )
    make = _with_labels if labels else _with_likelihood
    return [make(task, *row) for row in zip(examples, requests, answered, strict=True)]


def _with_likelihood(task: Task, example: Example, request: Asked, answered: Answered) -> Prediction:
    at = zip(map(str, TEMPERATURES), (-answered.tempered[:, 0]).tolist(), strict=True)
    return Prediction(
        query_id=example.example_id,
        user_id=example.user_id,
        gold=example.answer,
        text=task.clean(answered.text),
        nll=-float(answered.scores[0]) if example.answer else None,
        nll_tokens=max(1, len(_rows(request)[0].answer)),
        nll_at=dict(at) if example.answer else {},
    )


def _with_labels(task: Task, example: Example, request: Asked, answered: Answered) -> Prediction:
    gold = task.labels.index(example.answer) if example.answer in task.labels else None
    shares = answered.scores.log_softmax(dim=0)
    return Prediction(
        query_id=example.example_id,
        user_id=example.user_id,
        gold=example.answer,
        text=task.clean(answered.text),
        label=task.labels[int(answered.scores.argmax())],
        nll=None if gold is None else -float(shares[gold]),
        label_scores=dict(zip(task.labels, answered.scores.tolist(), strict=True)),
    )
