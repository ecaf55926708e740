"""Who is one person: siblings, popular films, co-authors, chains."""

from __future__ import annotations

import random
import time
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.data.lamp import read_lamp
from mta.data.people import PERSONAL_ITEMS, SHARED_ITEMS, PersonRule, find_people, rule_for
from mta.errors import ConfigError
from mta.records import HistoryItem, Query, User
from mta.tasks import TASKS

RULES = [PERSONAL_ITEMS, SHARED_ITEMS]


def film(name: str | int, tag: str = "comedy") -> HistoryItem:
    return HistoryItem(str(name), {"description": f"a long description of film {name}", "tag": tag})


def user(user_id: str, *items: HistoryItem, ask: HistoryItem | None = None) -> User:
    queries = ()
    if ask:
        text = f"Which tag? tags: [action, comedy] description: {ask.get('description')}"
        queries = (Query(f"{user_id}-q", text, ask.get("tag")),)
    return User(user_id, items, queries)


def siblings(name: str, items: list[HistoryItem], count: int) -> list[User]:
    """Leave-one-out records of one person, as LaMP makes them."""
    return [user(f"{name}{k}", *items[:k], *items[k + 1 :], ask=items[k]) for k in range(count)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [3, 4, 11, 51])
def test_leave_one_out_siblings_are_one_person(rule: PersonRule, length: int) -> None:
    ann = siblings("a", [film(k) for k in range(length)], 3)
    ben = siblings("b", [film(-1 - k) for k in range(length)], 2)
    assert find_people([*ann, *ben], rule=rule) == [("a0", "a1", "a2"), ("b0", "b1")]


@pytest.mark.parametrize("rule", RULES)
def test_siblings_are_found_without_their_queries(rule: PersonRule) -> None:
    users = [User(u.user_id, u.history) for u in siblings("a", [film(k) for k in range(11)], 2)]  # nine of ten shared
    assert len(find_people(users, rule=rule)) == 1


@pytest.mark.parametrize("rule", RULES)
def test_a_big_group_of_siblings_does_not_pass_as_popular(rule: PersonRule) -> None:
    users = siblings("a", [film(k) for k in range(40)], 40)
    assert len(find_people([*users, user("z", film("z1"), film("z2"))], rule=rule)) == 2


@pytest.mark.parametrize("rule", RULES)
def test_a_history_that_goes_on_is_the_same_person(rule: PersonRule) -> None:
    items = [film(k) for k in range(30)]
    assert len(find_people([user("early", *items[:10]), user("late", *items)], rule=rule)) == 1


@pytest.mark.parametrize("rule", RULES)
def test_one_shared_item_or_none_is_no_evidence(rule: PersonRule) -> None:
    users = [user("a", film(1)), user("b", film(1)), user("c", film(1), film(2)), user("d"), user("e")]
    assert len(find_people(users, rule=rule)) == 5


def test_popular_films_do_not_make_one_person_of_their_lovers() -> None:
    popular = [film(f"hit{k}") for k in range(6)]
    users = [user(f"u{n}", *popular, *(film(f"{n}-{k}") for k in range(6))) for n in range(12)]
    assert len(find_people(users)) == 12  # twelve holders are more than max_holders = 10
    assert len(find_people(users[:10])) == 1  # ten are not, and six shared items of twelve are enough


@pytest.mark.parametrize(
    ("shared", "own", "together"),
    [(5, 45, True), (4, 46, False), (2, 2, True), (2, 3, False), (1, 0, False), (4, 4, True)],
)
def test_personal_items_prove_a_person_by_number_or_share(shared: int, own: int, together: bool) -> None:
    common = [film(k) for k in range(shared)]
    users = [user(n, *common, *(film(f"{n}{k}") for k in range(own + extra))) for n, extra in (("a", 0), ("b", 3))]
    assert (len(find_people(users)) == 1) == together


@pytest.mark.parametrize(("shared", "together"), [(17, False), (18, True)])
def test_co_authors_need_nearly_everything_in_common(shared: int, together: bool) -> None:
    common = [film(k) for k in range(shared)]
    users = [user(n, *common, *(film(f"{n}{k}") for k in range(20 - shared))) for n in "ab"]
    assert (len(find_people(users, rule=SHARED_ITEMS)) == 1) == together


def test_case_and_white_space_do_not_hide_a_copy_but_another_answer_does() -> None:
    items = [film(k) for k in range(4)]
    shouted = [HistoryItem("x", {n: f" {t.upper()}\n" for n, t in item.fields.items()}) for item in items]
    other = [film(k, tag="action") for k in range(4)]
    assert find_people([user("a", *items), user("b", *shouted), user("c", *other)]) == [("a", "b"), ("c",)]


def test_people_are_chained() -> None:
    def part(start: int) -> list[HistoryItem]:
        return [film(k) for k in range(start, start + 10)]

    users = [user("a", *part(0)), user("c", *part(10)), user("b", *part(5))]
    assert find_people(users) == [("a", "c", "b")]


def test_citation_queries_are_compared_by_title_and_chosen_reference() -> None:
    def ask(gold: str) -> Query:
        head = 'For an author who has written the paper with the title "A paper about parsing things", which reference'
        return Query("q", f'{head} is related? [1]: "The first reference" [2]: "The other reference"', gold)

    paper = HistoryItem("p", {"title": "A paper about parsing things", "citation": "The first reference"})
    rest = [HistoryItem("r", {"title": "Another paper of this author", "citation": "Something"})]
    one, two = User("a", (paper, *rest)), User("b", tuple(rest), (ask("[1]"),))
    assert len(find_people([one, two], rule=SHARED_ITEMS)) == 1
    assert len(find_people([one, User("b", tuple(rest), (ask("[2]"),))], rule=SHARED_ITEMS)) == 2


def slow_people(users: list[User], rule: PersonRule) -> list[tuple[str, ...]]:
    """All pairs, straight from the definition (no popular items, no queries here)."""
    records = [frozenset(i.get("description") for i in u.history) for u in users]
    parent = list(range(len(users)))

    def join(one: int, two: int) -> None:
        old, new = parent[two], parent[one]
        parent[:] = [new if p == old else p for p in parent]

    for one, two in combinations(range(len(users)), 2):
        a, b = records[one], records[two]
        shared, shorter = len(a & b), min(len(a), len(b))
        if shared >= 2 and (a == b or (shared >= 5 and 10 * shared >= 9 * shorter)):
            join(one, two)
    changed = rule.items_are_personal
    if changed:
        people = {p: frozenset().union(*(records[i] for i in range(len(users)) if parent[i] == p)) for p in set(parent)}
        for one, two in combinations(sorted(people), 2):
            shared, shorter = len(people[one] & people[two]), min(len(people[one]), len(people[two]))
            if shared >= 5 or (shared >= 2 and 2 * shared >= shorter):
                join(one, two)
    groups: dict[int, list[str]] = {}
    for index, p in enumerate(parent):
        groups.setdefault(p, []).append(users[index].user_id)
    return list(map(tuple, groups.values()))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), personal=st.booleans())
def test_same_groups_as_comparing_all_pairs(seed: int, personal: bool) -> None:
    generator = random.Random(seed)
    bases = [generator.sample(range(40), generator.randint(1, 12)) for _ in range(6)]
    users = []
    for n in range(10):  # at most ten holders of an item: nothing is popular
        kept = [k for k in generator.choice(bases) if generator.random() > 0.1]
        users.append(user(f"u{n}", *map(film, kept), *map(film, generator.sample(range(40), generator.randint(0, 2)))))
    rule = PersonRule(items_are_personal=personal)
    assert sorted(map(sorted, find_people(users, rule=rule))) == sorted(map(sorted, slow_people(users, rule)))


RELEASED = [
    ("LaMP_2", "lamp-2", "off2-", ("description", "tag"), 3),
    ("LaMP_4", "lamp-4", "off4-", ("text", "title"), 2),
]


@pytest.mark.parametrize(("folder", "task_id", "prefix", "names", "count"), RELEASED)
def test_siblings_rebuilt_from_real_users(
    lamp_real: Path, folder: str, task_id: str, prefix: str, names: tuple[str, str], count: int
) -> None:
    """The data has merged the released siblings; put them back, one record a query, and they are found again."""
    merged = [u for u in read_lamp(lamp_real / folder / "target_questions.json") if u.user_id.startswith(prefix)]
    records, people = [], []
    for person in merged:
        payloads = [TASKS[task_id].parse_query(query.text)[names[0]] for query in person.queries]
        seen = [
            HistoryItem(query.query_id, {names[0]: payload, names[1]: query.gold or ""})
            for query, payload in zip(person.queries, payloads, strict=True)
        ]
        assert len(seen) == count
        for k, query in enumerate(person.queries):
            records.append(User(query.query_id, (*person.history, *seen[:k], *seen[k + 1 :]), (query,)))
        people.append(tuple(query.query_id for query in person.queries))
    assert len(people) > 10
    assert find_people(records, rule=rule_for(task_id)) == people


def test_ten_thousand_users_take_seconds() -> None:
    generator = random.Random(0)
    weights = [1 / (k + 1) for k in range(5000)]  # few films are in most histories, most in few
    users = [
        user(f"u{n}", *map(film, set(generator.choices(range(5000), weights, k=20))), film(f"own{n}"), film(f"my{n}"))
        for n in range(10_000)
    ]
    start = time.perf_counter()
    people = find_people(users, rule=PersonRule(min_share=1.0, min_shared=15))
    assert time.perf_counter() - start < 20
    assert len(people) == 10_000


def test_rules_by_task() -> None:
    assert rule_for("lamp-4") == rule_for("own") == PERSONAL_ITEMS
    assert not rule_for("lamp-5").items_are_personal
    assert [task for task in ("lamp-1", "lamp-2", "lamp-3") if rule_for(task).answers_may_be_seen] == ["lamp-2"]
    with pytest.raises(ConfigError, match="min_share"):
        PersonRule(min_share=0.0)
