"""Invented people with known tastes, for a demonstration whose right answers are known.

What a person answers depends on the text and on that person alone, so a model that knows only the texts stays
below `best_score`, and one that knows a person's group but not her quirks stays below it too. Histories are
mostly set in the group's own places, so that groups can be told apart; queries are set anywhere, so that their
texts do not give away who is asking. The texts stand in `persona_texts`, the tastes in `persona_shapes`.

Example:
    >>> people = make_personas("lamp-2", people=6, history=12, queries=4, seed=0)
    >>> len(people.users), people.users[0].queries[0].gold in people.truth["person-000"].likes
    (6, True)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from mta.data.lamp import write_lamp
from mta.data.persona_shapes import Facts, Likes, Scene, Shape, find_shape
from mta.data.persona_texts import GROUPS, PLACES
from mta.errors import ConfigError, unknown_name
from mta.files import write_json, write_jsonl
from mta.metrics import score
from mta.records import HistoryItem, Query, User
from mta.seeds import stable_seed

OWN_PLACE_SHARE = 0.75
"""Share of history items set in a place of the person's own group."""
MAX_REDRAWS = 1000


@dataclass(frozen=True, slots=True)
class Taste:
    """What one invented person prefers."""

    group: str
    """The group she shares most of her likes with."""
    likes: Likes
    """Her own likes, quirks included; what each place means stands in `persona_shapes`."""


@dataclass(frozen=True, slots=True)
class Personas:
    """Invented people, and everything that is true about them."""

    task_id: str
    seed: int
    users: tuple[User, ...]
    truth: Mapping[str, Taste]
    """user_id -> taste."""
    facts: Mapping[str, Facts]
    """Query or item id -> what its text holds, as far as answers depend on it."""
    best_score: Mapping[str, float]
    """Metric -> exact score, on these queries, of somebody who knows every taste; noise keeps it from perfect."""
    group_score: Mapping[str, float]
    """Metric -> the same for somebody who knows everybody's group but nobody's quirks."""


@dataclass(frozen=True, slots=True)
class _Plan:
    prefix: str
    people: int
    history: tuple[int, int]
    queries: int


def ideal_answer(task_id: str, likes: Likes, facts: Facts) -> str:
    """Return what somebody with these likes answers to a text that holds `facts`, before any noise.

    Raises:
        NotFound: no people can be invented for the task.
    """
    return find_shape(task_id).answer(likes, facts)


def group_likes(task_id: str, group: str) -> Likes:
    """Return the likes that the members of `group` share, up to their quirks.

    Raises:
        NotFound: there is no such task or group.
    """
    groups = find_shape(task_id).groups
    if group not in groups:
        raise unknown_name("group", group, groups)
    return groups[group]


def make_personas(task_id: str, *, people: int, history: tuple[int, int] | int, queries: int, seed: int) -> Personas:
    """Invent people with known tastes, the same ones for the same arguments.

    Args:
        task_id: one of "lamp-1" to "lamp-5", or "own".
        people: how many.
        history: items in a history: one number, or the least and the most.
        queries: questions asked of each person.
        seed: decides tastes and texts.

    Raises:
        NotFound: no people can be invented for the task.
        ConfigError: a number is out of range, or more different texts are asked for than there are.
    """
    shape = find_shape(task_id)
    return _invent(shape, _plan("person", people, history, queries), seed, taken=set())


def make_pool_and_targets(
    task_id: str,
    *,
    pool: int = 24,
    targets: int = 8,
    pool_history: tuple[int, int] | int = (16, 24),
    target_history: tuple[int, int] | int = (10, 14),
    pool_queries: int = 1,
    target_queries: int = 12,
    seed: int = 0,
) -> tuple[Personas, Personas]:
    """Invent people for a bank and other people to serve; no text occurs twice among all of them.

    Args are those of `make_personas`, once for the pool and once for the targets.
    """
    shape = find_shape(task_id)
    taken: set[str] = set()
    return (
        _invent(shape, _plan("pool", pool, pool_history, pool_queries), seed, taken=taken),
        _invent(shape, _plan("target", targets, target_history, target_queries), seed, taken=taken),
    )


def write_personas(
    folder: Path,
    *,
    task_id: str,
    pool: int = 24,
    targets: int = 8,
    pool_history: tuple[int, int] | int = (16, 24),
    target_history: tuple[int, int] | int = (10, 14),
    pool_queries: int = 1,
    target_queries: int = 12,
    seed: int = 0,
) -> tuple[Personas, Personas]:
    """Write invented people as data files and return them as (pool, targets).

    A LaMP task gives `pool_questions.json`, `pool_outputs.json`, `target_questions.json` and `target_outputs.json`
    in LaMP's raw format; "own" gives `pool.jsonl` and `target.jsonl`, where the last rows of each person are the
    queries (`pool_queries` and `target_queries` of them). `personas.json` holds the truth: seed, best possible scores
    and everybody's taste.

    Raises:
        NotFound: no people can be invented for the task.
        ConfigError: a number is out of range.
        StorageError: the folder cannot be written.
    """
    both = make_pool_and_targets(
        task_id,
        pool=pool,
        targets=targets,
        pool_history=pool_history,
        target_history=target_history,
        pool_queries=pool_queries,
        target_queries=target_queries,
        seed=seed,
    )
    for name, personas in zip(("pool", "target"), both, strict=True):
        if task_id == "own":
            write_jsonl(folder / f"{name}.jsonl", _jsonl_rows(personas.users))
        else:
            write_lamp(personas.users, folder / f"{name}_questions.json", task_name=task_id.replace("lamp-", "LaMP_"))
    write_json(folder / "personas.json", _truth_record(*both))
    return both


# Inventing -------------------------------------------------------------------------------------------------------


def _plan(prefix: str, people: int, history: tuple[int, int] | int, queries: int) -> _Plan:
    least, most = (history, history) if isinstance(history, int) else history
    for name, value, lowest in (("people", people, 1), ("history", least, 1), ("queries", queries, 0)):
        if value < lowest:
            raise ConfigError(f"cannot invent people: {prefix} {name} is {value}; it must be {lowest} or more")
    if most < least:
        raise ConfigError(f"cannot invent people: {prefix} history is {least} to {most}; put the smaller number first")
    return _Plan(prefix, people, (least, most), queries)


def _invent(shape: Shape, plan: _Plan, seed: int, *, taken: set[str]) -> Personas:
    groups = list(GROUPS)
    Random(stable_seed(seed, shape.task_id, plan.prefix)).shuffle(groups)
    users: list[User] = []
    truth: dict[str, Taste] = {}
    facts: dict[str, Facts] = {}
    for number in range(plan.people):
        user_id = f"{plan.prefix}-{number:03d}"
        rng = Random(stable_seed(seed, shape.task_id, user_id))
        group = groups[number % len(groups)]
        taste = Taste(group, shape.vary(rng, shape.groups[group]))
        user, scenes = _invent_user(shape, plan, user_id, taste, rng, taken)
        users.append(user)
        truth[user_id] = taste
        facts |= scenes
    queries = [(truth[user.user_id], query) for user in users for query in user.queries]
    return Personas(
        task_id=shape.task_id,
        seed=seed,
        users=tuple(users),
        truth=truth,
        facts=facts,
        best_score=_score(shape, [(taste.likes, query) for taste, query in queries], facts),
        group_score=_score(shape, [(shape.groups[taste.group], query) for taste, query in queries], facts),
    )


def _invent_user(
    shape: Shape, plan: _Plan, user_id: str, taste: Taste, rng: Random, taken: set[str]
) -> tuple[User, dict[str, Facts]]:
    """One person, and the facts of every scene by item or query id."""
    facts: dict[str, Facts] = {}
    history = []
    for number in range(rng.randint(*plan.history)):
        scene = _fresh_scene(shape, rng, taste.group if rng.random() < OWN_PLACE_SHARE else None, taken)
        item_id = f"{user_id}-p{number}"
        facts[item_id] = scene.past_facts or scene.facts
        answer = _noisy_answer(shape, rng, taste, facts[item_id])
        stored = {shape.output_field: scene.remembered.get(answer, answer)}
        history.append(HistoryItem(item_id, {**scene.fields, **stored}))
    queries = []
    for number in range(1, plan.queries + 1):
        scene = _fresh_scene(shape, rng, None, taken)
        query_id = f"{user_id}-{number}"
        facts[query_id] = scene.facts
        queries.append(Query(query_id, scene.question, _noisy_answer(shape, rng, taste, scene.facts)))
    return User(user_id, tuple(history), tuple(queries)), facts


def _fresh_scene(shape: Shape, rng: Random, group: str | None, taken: set[str]) -> Scene:
    """Draw until the text is a new one; it is set in a place of `group`, or anywhere."""
    places = [place for name in (GROUPS if group is None else (group,)) for place in PLACES[name]]
    for _ in range(MAX_REDRAWS):
        scene = shape.draw(rng, rng.choice(places))
        key = scene.fields[shape.key_field]
        if key not in taken:
            taken.add(key)
            return scene
    raise ConfigError(
        f"cannot invent more people for {shape.task_id}: after {len(taken)} different texts, {MAX_REDRAWS} draws in a "
        "row repeated one; ask for fewer people, shorter histories or fewer queries"
    )


def _noisy_answer(shape: Shape, rng: Random, taste: Taste, facts: Facts) -> str:
    answer = shape.answer(taste.likes, facts)
    return shape.stray(rng, answer, facts) if rng.random() < shape.noise else answer


def _score(shape: Shape, asked: Sequence[tuple[Likes, Query]], facts: Mapping[str, Facts]) -> dict[str, float]:
    """Score the answers that follow from the given likes; {} where nothing is asked."""
    if not asked:
        return {}
    answers = [shape.answer(likes, facts[query.query_id]) for likes, query in asked]
    return score(shape.metrics, answers, [query.gold or "" for _, query in asked], labels=shape.labels)


# Writing ---------------------------------------------------------------------------------------------------------


def _jsonl_rows(users: Sequence[User]) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for user in users:
        pairs = [(item.get("input"), item.get("output")) for item in user.history]
        pairs += [(query.text, query.gold or "") for query in user.queries]
        rows += [{"user_id": user.user_id, "input": text, "output": answer} for text, answer in pairs]
    return rows


def _truth_record(pool: Personas, targets: Personas) -> dict[str, Any]:
    def part(personas: Personas) -> dict[str, Any]:
        people = {name: {"group": taste.group, "likes": list(taste.likes)} for name, taste in personas.truth.items()}
        return {"best_score": personas.best_score, "group_score": personas.group_score, "people": people}

    return {"task": pool.task_id, "seed": pool.seed, "pool": part(pool), "target": part(targets)}
