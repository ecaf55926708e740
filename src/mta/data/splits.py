"""Bank pool and target users that are different people, and the check that they are.

Ids do not tell people apart (see `data.people`), so a split is made and checked by histories. Every
split built here has passed `check_disjoint` before it is returned.

Example:
    >>> split = build_split(users, history_length=10, count=100, seed=42, rule=rule_for("lamp-2"))
    >>> split.report.people, len(split.targets)
    (2310, 100)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from mta.data.checks import SHOWN_IDS, first_few
from mta.data.people import (
    PERSONAL_ITEMS,
    PersonRule,
    group_records,
    item_texts,
    items_by_text,
    matching_items,
)
from mta.errors import ConfigError, DataError
from mta.records import User

PAPER_HISTORY_LENGTH: Mapping[str, int] = {"lamp-1": 50, "lamp-2": 10, "lamp-3": 100, "lamp-4": 10, "lamp-5": 50}
"""Items in the history of the paper's target users (appendix B)."""


@dataclass(frozen=True, slots=True)
class Leaks:
    """What a pool knows about the targets that it must not; empty tuples where all is well."""

    shared_ids: tuple[str, ...]
    """User ids that are in both."""
    same_people: tuple[tuple[str, str], ...]
    """(pool user, target user) that are one person by their histories."""
    seen_answers: tuple[tuple[str, str], ...]
    """(pool user, target query) where the pool user's history holds the query's text with its answer."""

    @property
    def any(self) -> bool:
        """Whether there is a leak of any kind."""
        return bool(self.shared_ids or self.same_people or self.seen_answers)

    @property
    def pool_users(self) -> set[str]:
        """The pool users that leak."""
        return {*self.shared_ids, *(user_id for user_id, _ in self.same_people + self.seen_answers)}


@dataclass(frozen=True, slots=True)
class SplitReport:
    """How a split came about, in numbers."""

    records: int
    """Users given."""
    people: int
    """Different people among them."""
    eligible_people: int
    """People who had a record that could be a target."""
    targets: int
    pool: int
    pool_people: int
    dropped_siblings: int
    """Records left out of both sides because they are a target's person."""
    dropped_seen: int
    """Records left out of the pool because their history answers a target's query."""
    dropped_questions: int
    """Questions without a gold answer among all records; neither side has them, for LaMP's form has all answers or
    none."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two sets of users that share no person."""

    pool: tuple[User, ...]
    targets: tuple[User, ...]
    report: SplitReport


def find_leaks(pool: Sequence[User], targets: Sequence[User], *, rule: PersonRule = PERSONAL_ITEMS) -> Leaks:
    """List what the pool shares with the targets: ids, people, and (unless the rule allows it) answers."""
    pool_ids = {user.user_id for user in pool}
    return Leaks(
        shared_ids=tuple(user.user_id for user in targets if user.user_id in pool_ids),
        same_people=_same_people(pool, targets, rule),
        seen_answers=() if rule.answers_may_be_seen else seen_answers(pool, targets),
    )


def _same_people(pool: Sequence[User], targets: Sequence[User], rule: PersonRule) -> tuple[tuple[str, str], ...]:
    users = [*pool, *targets]
    return tuple(
        (users[one].user_id, users[two].user_id)
        for group in group_records(users, rule=rule)
        for one in group
        if one < len(pool)
        for two in group
        if two >= len(pool)
    )


def seen_answers(pool: Sequence[User], targets: Sequence[User]) -> tuple[tuple[str, str], ...]:
    """List where the pool's histories hold the text of a target's query with its answer.

    Returns:
        (pool user, query id) pairs.
    """
    holders: dict[frozenset[str], list[str]] = {}
    for user in pool:
        for item in {item_texts(item) for item in user.history}:
            holders.setdefault(item, []).append(user.user_id)
    where = items_by_text(holders)
    found = [
        (user_id, query.query_id)
        for target in targets
        for query in target.queries
        for item in sorted(matching_items(query, where), key=sorted)
        for user_id in holders[item]
    ]
    return tuple(dict.fromkeys(found))


def answers_in_own_history(users: Sequence[User]) -> tuple[tuple[str, str], ...]:
    """List the queries that stand in their own user's history, with the same answer where it is known.

    Whoever looks into the history can copy such an answer, so a score counts them as no proof of a learned taste.

    Returns:
        (user id, query id) pairs.
    """
    return tuple(
        (user.user_id, query.query_id)
        for user in users
        if user.queries
        for where in [items_by_text({item_texts(item) for item in user.history})]
        for query in user.queries
        if matching_items(query, where)
    )


def check_disjoint(pool: Sequence[User], targets: Sequence[User], *, rule: PersonRule = PERSONAL_ITEMS) -> None:
    """Raise if the pool and the targets share a user id, a person, or a target's answer.

    Popular items that two people share by chance do not count.

    Args:
        pool: users the bank is built from.
        targets: users to evaluate on.
        rule: what proves one person, `people.rule_for(task_id)` for LaMP tasks.

    Raises:
        DataError: they leak; the message counts the leaks and names the first.
    """
    leaks = find_leaks(pool, targets, rule=rule)
    if leaks.any:
        raise DataError(
            f"pool ({len(pool)} users) and targets ({len(targets)}) are not different people: got "
            f"{'; '.join(_leak_lines(leaks))}; wanted none, because a bank trained on them has seen the answers; "
            f"leave the {len(leaks.pool_users)} pool users out (`mta run --drop-leaks` does), or build the split again "
            "(`mta data split`); for own data in which different ids are known to be different people, name the task "
            "own-by-id"
        )


def _leak_lines(leaks: Leaks) -> list[str]:
    lines = []
    if leaks.shared_ids:
        lines.append(f"{len(leaks.shared_ids)} shared user ids ({first_few(list(leaks.shared_ids))})")
    if leaks.same_people:
        lines.append(f"{len(leaks.same_people)} pairs (pool, target) of one person ({_pairs(leaks.same_people)})")
    if leaks.seen_answers:
        lines.append(
            f"{len(leaks.seen_answers)} target queries answered in a pool history ({_pairs(leaks.seen_answers)})"
        )
    return lines


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    shown = ", ".join(f"{one!r} = {two!r}" for one, two in islice(pairs, SHOWN_IDS))
    return shown if len(pairs) <= SHOWN_IDS else f"{shown} and {len(pairs) - SHOWN_IDS} more"


def drop_leaks(
    pool: Sequence[User], targets: Sequence[User], *, rule: PersonRule = PERSONAL_ITEMS
) -> tuple[list[User], Leaks]:
    """Return the pool without the users that leak, and what leaked; the rest passes `check_disjoint`."""
    leaks = find_leaks(pool, targets, rule=rule)
    kept = [user for user in pool if user.user_id not in leaks.pool_users]
    if not leaks.any:
        return kept, leaks
    kept, more = drop_leaks(kept, targets, rule=rule)  # an item that was popular may now be rare, and prove more
    return kept, Leaks(
        leaks.shared_ids + more.shared_ids,
        leaks.same_people + more.same_people,
        leaks.seen_answers + more.seen_answers,
    )


def build_split(
    users: Sequence[User],
    *,
    history_length: int,
    max_history_length: int | None = None,
    count: int = 100,
    seed: int,
    rule: PersonRule = PERSONAL_ITEMS,
) -> Split:
    """Draw target users at random and make everybody else the pool.

    Targets are people: one record each, drawn among the person's records that have the wanted history
    length and at least one query with a gold answer. The person's other records go to neither side;
    pool users who hold a target's answer are left out as well, and so are questions without a gold answer. The
    draw does not depend on the order of `users`; both sides keep that order.

    Args:
        users: records to split; user ids must differ.
        history_length: items a target's history has, `PAPER_HISTORY_LENGTH[task_id]` for the paper's protocol.
        max_history_length: allow from `history_length` up to this many items instead of exactly that many.
        count: target people.
        seed: of the draw.
        rule: what proves one person, `people.rule_for(task_id)` for LaMP tasks.

    Raises:
        ConfigError: lengths or count make no sense.
        DataError: user ids repeat, too few people are eligible, or nobody is left for the pool.
    """
    longest = history_length if max_history_length is None else max_history_length
    if history_length < 1 or longest < history_length or count < 1:
        raise ConfigError(
            f"cannot split with history_length {history_length}, max_history_length {max_history_length} "
            f"and count {count}; "
            "wanted 1 <= history_length <= max_history_length and count >= 1"
        )
    _refuse_repeated_ids(users)
    asked = sum(len(user.queries) for user in users)
    users = [replace(user, queries=tuple(query for query in user.queries if query.gold is not None)) for user in users]
    open_questions = asked - sum(len(user.queries) for user in users)
    groups = group_records(users, rule=rule)
    eligible = [_eligible(users, group, history_length, longest) for group in groups]
    chosen = _draw([ids for ids in eligible if ids], count=count, seed=seed)
    if len(chosen) < count:
        raise DataError(_too_few(users, len(chosen), count, history_length, longest))
    return _split(users, groups, chosen, rule, eligible_people=sum(map(bool, eligible)), open_questions=open_questions)


def _refuse_repeated_ids(users: Sequence[User]) -> None:
    if len({user.user_id for user in users}) < len(users):
        raise DataError(f"got {len(users)} users with repeated user ids; wanted each once; join or rename them")


def _eligible(users: Sequence[User], group: Sequence[int], shortest: int, longest: int) -> list[str]:
    return sorted(
        users[index].user_id
        for index in group
        if shortest <= len(users[index].history) <= longest and users[index].queries
    )


def _draw(people: Sequence[list[str]], *, count: int, seed: int) -> set[str]:
    """Draw `count` people and one record of each; fewer if there are fewer."""
    generator = random.Random(seed)
    drawn = generator.sample(sorted(people), min(count, len(people)))
    return {generator.choice(ids) for ids in drawn}


def _too_few(users: Sequence[User], found: int, count: int, shortest: int, longest: int) -> str:
    lengths = sorted(len(user.history) for user in users)
    span = f"from {lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}" if lengths else "of nobody"
    wanted = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    return (
        f"too few target users: got {found} people with {wanted} history items and a query with a gold answer, "
        f"wanted {count}; histories here are {span} items long; ask for fewer or widen the range of lengths"
    )


def _split(
    users: Sequence[User],
    groups: Sequence[Sequence[int]],
    chosen: set[str],
    rule: PersonRule,
    *,
    eligible_people: int,
    open_questions: int,
) -> Split:
    theirs = {i for group in groups if any(users[j].user_id in chosen for j in group) for i in group}
    targets = tuple(user for user in users if user.user_id in chosen)
    others = [user for index, user in enumerate(users) if index not in theirs]
    pool, leaks = drop_leaks(others, targets, rule=rule)
    if not pool:
        raise DataError(
            f"nobody is left for the pool: {len(users)} records, {len(targets)} targets; ask for fewer targets"
        )
    check_disjoint(pool, targets, rule=rule)
    report = SplitReport(
        records=len(users),
        people=len(groups),
        eligible_people=eligible_people,
        targets=len(targets),
        pool=len(pool),
        pool_people=len(group_records(pool, rule=rule)),
        dropped_siblings=len(theirs) - len(targets),
        dropped_seen=len(leaks.pool_users),
        dropped_questions=open_questions,
    )
    return Split(tuple(pool), targets, report)
