"""Which records are the same person, judged by what their histories share, or by their ids where these are known.

LaMP makes one record a question: the records of a person have histories that differ by little more
than each other's questions, and each holds the others' answers. Ids do not show this, histories do.

A record is compared as the set of its items' normalised texts, plus those of its own queries that
stand (with the same answer) in somebody's history: with these, leave-one-out siblings are equal sets.
Two things other than one person also share items, and must not be taken for it: people who like the
same popular films, and co-authors. See `PersonRule`.

Knows nothing of tasks beyond the ids in `PERSON_RULES`, and nothing of files.

Example:
    >>> find_people(users, rule=rule_for("lamp-4"))
    [('3041', '3042'), ('3055',)]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from mta.errors import ConfigError
from mta.records import HistoryItem, Query, User

MIN_EVIDENCE = 2
"""Shared items below which two people are never taken for one: a single film or "thank you" proves nothing."""
SIBLING_SHARE = 0.9
"""Share of the shorter record from which two records are siblings, whatever the items are. Ten-item
siblings share nine items; of 719 real pairs of co-authors that share a paper, one reaches it."""
SIBLING_ITEMS = 5
"""Shared items that siblings need besides, unless the records are equal."""
MAX_COLONS = 8
MIN_PAYLOAD_CHARACTERS = 20
"""Shorter query texts are not looked up in histories: "hi" is in many."""
CITATION_QUERY = re.compile(
    r'the title "(?P<title>.*)", which reference.*\[1\]: "(?P<one>.*)" \[2\]: "(?P<two>.*)"', re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonRule:
    """When two records that are no siblings still count as one person, and which answers may be seen.

    Siblings (equal records, or at least 5 shared items that are at least 90 % of the shorter record)
    are one person under every rule.
    """

    items_are_personal: bool = True
    """An item belongs to one person (reviews, headlines, own data), so sharing a few proves identity. False
    where several people naturally hold the same item (films, papers): then only siblings are one person."""
    min_shared: int = 5
    """Shared items that prove one person, whatever the lengths of the histories."""
    min_share: float = 0.5
    """Share of the shorter history that proves one person (with at least two shared items)."""
    max_holders: int = 10
    """Items held by more people than this (siblings counted once) are popular and prove nothing."""
    ids_are_people: bool = False
    """Different ids are different people, whatever their histories share; histories are not compared."""
    answers_may_be_seen: bool = False
    """A target's query may stand in a pool user's history with the target's answer (films: tags are common)."""

    def __post_init__(self) -> None:
        if self.min_shared < 1 or not 0 < self.min_share <= 1 or self.max_holders < 2:
            raise ConfigError(
                f"cannot compare people with {self}; wanted min_shared >= 1, 0 < min_share <= 1 and max_holders >= 2"
            )


PERSONAL_ITEMS = PersonRule()
SHARED_ITEMS = PersonRule(items_are_personal=False)
KNOWN_IDS = PersonRule(ids_are_people=True, answers_may_be_seen=True)
PERSON_RULES: Mapping[str, PersonRule] = {
    "lamp-1": SHARED_ITEMS,
    "lamp-2": PersonRule(items_are_personal=False, answers_may_be_seen=True),
    "lamp-3": PERSONAL_ITEMS,
    "lamp-4": PERSONAL_ITEMS,
    "lamp-5": SHARED_ITEMS,
    "own-by-id": KNOWN_IDS,
}


def rule_for(task_id: str) -> PersonRule:
    """Return the rule of a task; tasks of one's own have the strict one, in which an item belongs to one person."""
    return PERSON_RULES.get(task_id, PERSONAL_ITEMS)


def find_people(users: Sequence[User], *, rule: PersonRule = PERSONAL_ITEMS) -> list[tuple[str, ...]]:
    """Group records by person.

    Inverted indexes keep this quick: only records that share rare items are compared. Who belongs
    together is transitive: a chain of siblings is one person.

    Args:
        users: records; user ids must differ.
        rule: what proves one person, `rule_for(task_id)` for LaMP tasks.

    Returns:
        Tuples of user ids, one a person, in the order of the first record of each; every user is in one.
    """
    return [tuple(users[index].user_id for index in group) for group in group_records(users, rule=rule)]


def person_names(users: Sequence[User], *, rule: PersonRule = PERSONAL_ITEMS) -> dict[str, str]:
    """Return user id -> the id that stands for the person, that of the person's first record."""
    return {user_id: group[0] for group in find_people(users, rule=rule) for user_id in group}


def group_records(users: Sequence[User], *, rule: PersonRule) -> list[list[int]]:
    """Do the work of `find_people` on positions, so that ids need not differ."""
    if rule.ids_are_people:
        return [[index] for index in range(len(users))]
    records = _item_sets(users)
    links = _Links(len(records))
    _join_equal(records, links)
    _join_siblings(records, links)
    if rule.items_are_personal:
        _join_sharers(records, links, rule)
    return links.groups()


class _Links:
    """Disjoint sets of positions (union-find)."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def join(self, one: int, two: int) -> None:
        one, two = sorted((self.root(one), self.root(two)))
        self.parent[two] = one

    def groups(self) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for index in range(len(self.parent)):
            members.setdefault(self.root(index), []).append(index)
        return list(members.values())


def _join_equal(records: Sequence[frozenset[int]], links: _Links) -> None:
    first: dict[frozenset[int], int] = {}
    for index, items in enumerate(records):
        if len(items) >= MIN_EVIDENCE:
            links.join(first.setdefault(items, index), index)


def _join_siblings(records: Sequence[frozenset[int]], links: _Links) -> None:
    """Join records that share 90 % of the shorter; each is compared with the holders of its rarest items only.

    A record sharing 90 % of mine holds at least one of my rarest 10 % (rounded down) plus one.
    """
    one_each = [index for index in range(len(records)) if links.root(index) == index]
    holders = _holders({index: records[index] for index in one_each})
    for index in one_each:
        mine = records[index]
        probes = max(0, len(mine) - _needed(len(mine)) + 1)
        rarest = sorted(mine, key=lambda item: (len(holders[item]), item))[:probes]
        for other in {other for item in rarest for other in holders[item]} - {index}:
            if len(records[other]) >= len(mine) and len(mine & records[other]) >= _needed(len(mine)):
                links.join(index, other)


def _needed(length: int) -> int:
    """Items that a sibling of a record of this length must share with it."""
    return max(SIBLING_ITEMS, -(-length * 9 // 10))


def _join_sharers(records: Sequence[frozenset[int]], links: _Links, rule: PersonRule) -> None:
    """Join people who share enough items that few people hold."""
    people = {group[0]: frozenset[int]().union(*(records[i] for i in group)) for group in links.groups()}
    shared: Counter[tuple[int, int]] = Counter()
    for holders in _holders(people).values():
        if len(holders) <= rule.max_holders:
            shared.update(combinations(holders, 2))
    for (one, two), count in shared.items():
        shorter = min(len(people[one]), len(people[two]))
        if count >= rule.min_shared or (count >= MIN_EVIDENCE and count >= rule.min_share * shorter):
            links.join(one, two)


def _holders(records: Mapping[int, Iterable[int]]) -> dict[int, list[int]]:
    """Return item -> positions of the records that hold it, ascending."""
    holders: dict[int, list[int]] = {}
    for index, items in records.items():
        for item in items:
            holders.setdefault(item, []).append(index)
    return holders


def _item_sets(users: Sequence[User]) -> list[frozenset[int]]:
    """Number all different items and return each record as the set of its numbers."""
    number: dict[frozenset[str], int] = {}
    records = []
    for user in users:
        texts = (item_texts(item) for item in user.history)
        records.append({number.setdefault(text, len(number)) for text in texts if text})
    where = items_by_text(number)
    for user, record in zip(users, records, strict=True):
        record.update(number[item] for query in user.queries for item in matching_items(query, where))
    return [frozenset(record) for record in records]


def item_texts(item: HistoryItem) -> frozenset[str]:
    """Return what an item is compared by: its texts in any order, without case, white space and empty fields."""
    return frozenset(filter(None, map(normalised, item.fields.values())))


def normalised(text: str) -> str:
    """Lower the case and fold the white space."""
    return " ".join(text.casefold().split())


def items_by_text(items: Iterable[frozenset[str]]) -> dict[str, list[frozenset[str]]]:
    """Return text -> items in which it is one of the fields, for texts long enough to look queries up by."""
    where: dict[str, list[frozenset[str]]] = {}
    for item in items:
        for text in item:
            if len(text) >= MIN_PAYLOAD_CHARACTERS:
                where.setdefault(text, []).append(item)
    return where


def matching_items(query: Query, where: Mapping[str, Sequence[frozenset[str]]]) -> set[frozenset[str]]:
    """Return the items that hold the query's text and, where the answer is known, the same answer."""
    return {
        item
        for payload, answer in _readings(query)
        for item in where.get(payload, ())
        if answer is None or answer in item
    }


def _readings(query: Query) -> Iterator[tuple[str, str | None]]:
    """Yield the texts a query may be about, with the answer: LaMP puts an instruction ending in ": " before it."""
    gold = None if query.gold is None else normalised(query.gold)
    citation = CITATION_QUERY.search(query.text)
    if citation:
        options = {"[1]": citation["one"], "[2]": citation["two"], None: None}
        chosen = options.get(gold)
        yield normalised(citation["title"]), normalised(chosen) if chosen is not None else gold
        return
    yield normalised(query.text), gold
    for colon in islice(re.finditer(r": ", query.text), MAX_COLONS):
        yield normalised(query.text[colon.end() :]), gold
