"""Examples of a user: training examples from the history, evaluation examples from the queries.

Training is leave-one-out: beside the example made from an item, only other items of the history are shown,
the most relevant first (BM25). Queries see the whole history.

Example:
    >>> training_examples(get_task("lamp-2"), user, history_k=1, seed=0).source
    'history items'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from mta.errors import DataError
from mta.records import Example, HistoryItem, Query, User
from mta.retrieval import TextIndex
from mta.tasks.task import Task, TrainingPair, TrainingPairs

Search = Callable[[Mapping[str, str], int, Collection[str]], tuple[HistoryItem, ...]]
"""Fields of a question, how many items, ids of items not to show -> the items to show, most relevant first."""


@dataclass(frozen=True, slots=True)
class Retriever:
    """A way to choose the items of a history that are shown beside a question."""

    name: str
    """Identifies the choice: equal names choose alike."""
    index: Callable[[Task, tuple[HistoryItem, ...]], Search]
    """Task, history -> its search."""


NOT_A_LABEL = "the answer is not one of the task's labels"


def _bm25(task: Task, history: tuple[HistoryItem, ...]) -> Search:
    index = TextIndex([task.retrieval_text(item) for item in history])
    position = {item.item_id: place for place, item in enumerate(history)}

    def search(fields: Mapping[str, str], history_k: int, hidden_ids: Collection[str]) -> tuple[HistoryItem, ...]:
        hidden = {position[item_id] for item_id in hidden_ids}
        ranked = index.rank(task.retrieval_query(fields), top_k=history_k, exclude=hidden)
        return tuple(history[place] for place in ranked)

    return search


BM25 = Retriever("bm25", _bm25)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExamples:
    """The training examples of one user and how they came about."""

    examples: tuple[Example, ...]
    source: str
    """How the pairs were made: "history items", "citation items" or "title to abstract"."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why items gave no example -> how many."""

    @property
    def skipped(self) -> int:
        """Items that gave no example."""
        return sum(self.reasons.values())


def training_examples(
    task: Task, user: User, *, history_k: int, seed: int, allow_proxy: bool = False
) -> TrainingExamples:
    """Turn a user's history into training examples, in the history's order.

    An empty history gives no examples. A history of one item gives one example with nothing shown beside it
    (or none, where the task needs a second item to ask about, as LaMP-1 does).

    Args:
        task: what is asked.
        user: whose history is used; the queries are not looked at.
        history_k: items shown beside each example, at most.
        seed: decides chance choices (LaMP-1's option order), together with the user's and the item's id.
        allow_proxy: where the history gives no pair at all, use the task's related question instead
            (LaMP-1: write the abstract to a title). `source` tells which was used.

    Raises:
        DataError: an item lacks a field the task needs, or two items share an id.
    """
    check_history(task, user)
    made = _pairs(task, user, seed=seed, allow_proxy=allow_proxy)
    retrieve = BM25.index(task, user.history)
    examples = tuple(
        Example(
            example_id=pair.item_id,
            user_id=user.user_id,
            fields=pair.fields,
            answer=pair.answer,
            history=retrieve(pair.fields, history_k, {pair.item_id, *pair.hidden_ids}),
        )
        for pair in made.pairs
    )
    return TrainingExamples(examples=examples, source=made.source, reasons=made.reasons)


def query_examples(task: Task, user: User, *, history_k: int, retriever: Retriever = BM25) -> tuple[Example, ...]:
    """Turn a user's queries into examples that may show any item of the history.

    The answer is "" where the file has no gold.

    Args:
        task: what is asked.
        user: whose queries are asked.
        history_k: items shown beside each query, at most.
        retriever: how they are chosen.

    Raises:
        DataError: an item lacks a field the task needs, an input cannot be parsed, or a gold answer is not
            one of the task's labels.
    """
    check_history(task, user)
    retrieve = retriever.index(task, user.history)
    examples = []
    for query in user.queries:
        fields = _parse(task, user, query)
        examples.append(
            Example(
                example_id=query.query_id,
                user_id=user.user_id,
                fields=fields,
                answer=_gold(task, user, query),
                history=retrieve(fields, history_k, ()),
            )
        )
    return tuple(examples)


def check_history(task: Task, user: User) -> None:
    """Check that every history item has the task's fields and an id of its own.

    Raises:
        DataError: the message names the user, the item, the field and the fields the item has.
    """
    for item in user.history:
        missing = [name for name in task.required_fields if name not in item.fields]
        if missing:
            had = ", ".join(sorted(item.fields)) or "none"
            raise DataError(
                f"user {user.user_id!r}, history item {item.item_id!r} has no field {', '.join(map(repr, missing))} "
                f"(it has: {had}); {task.task_id} items need {', '.join(task.required_fields)} - "
                "check that the file belongs to this task"
            )
    item_id, times = next(iter(Counter(item.item_id for item in user.history).most_common(1)), ("", 0))
    if times > 1:
        raise DataError(
            f"user {user.user_id!r} has {times} history items with the id {item_id!r}; give every item its own id"
        )


def pairs_from_items(
    user: User,
    seed: int,
    *,
    input_field: str,
    output_field: str,
    labels: tuple[str, ...] = (),
    normal_answer: Callable[[str], str] = str.strip,
    placeholders: Collection[str] = (),
) -> TrainingPairs:
    """Make one pair an item: ask about its input field, answer with its output field.

    Items are skipped, and counted, when either field is blank or a placeholder (compared in lower case), or
    when the answer is not among `labels`. `seed` is not used: nothing is left to chance.
    """
    pairs: list[TrainingPair] = []
    reasons: Counter[str] = Counter()
    for item in user.history:
        asked, answer = item.get(input_field).strip(), normal_answer(item.get(output_field))
        blank = [name for name, text in ((input_field, asked), (output_field, answer)) if _blank(text, placeholders)]
        if blank:
            reasons[f"blank {blank[0]}"] += 1
        elif labels and answer not in labels:
            reasons[NOT_A_LABEL] += 1
        else:
            pairs.append(TrainingPair(fields={input_field: asked}, answer=answer, item_id=item.item_id))
    return TrainingPairs(pairs=tuple(pairs), source="history items", reasons=dict(reasons))


def _blank(text: str, placeholders: Collection[str]) -> bool:
    return not text or text.rstrip(".").lower() in placeholders


def _pairs(task: Task, user: User, *, seed: int, allow_proxy: bool) -> TrainingPairs:
    made = task.pairs(user, seed)
    if made.pairs or not allow_proxy or task.proxy_pairs is None:
        return made
    return task.proxy_pairs(user, seed)


def _parse(task: Task, user: User, query: Query) -> Mapping[str, str]:
    try:
        return task.parse_query(query.text)
    except DataError as error:
        raise DataError(f"user {user.user_id!r}, query {query.query_id!r}: {error}") from error


def _gold(task: Task, user: User, query: Query) -> str:
    if query.gold is None:
        return ""
    gold = task.normal_answer(query.gold)
    if task.labels and gold not in task.labels:
        raise DataError(
            f"user {user.user_id!r}, query {query.query_id!r}: the gold answer {query.gold!r} is not one of "
            f"{', '.join(task.labels)}; check that the answers belong to {task.task_id}"
        )
    return gold
