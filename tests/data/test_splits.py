"""Splits: nobody on both sides, leaks are named, the draw is random but repeatable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mta.data.lamp import read_lamp
from mta.data.people import SHARED_ITEMS, find_people, rule_for
from mta.data.splits import answers_in_own_history, build_split, check_disjoint, drop_leaks, find_leaks
from mta.errors import ConfigError, DataError
from mta.records import HistoryItem, Query, User


def item(name: str) -> HistoryItem:
    return HistoryItem(name, {"text": f"the full text of article {name}", "title": f"headline {name}"})


def records(name: str, *, length: int, siblings: int = 1) -> list[User]:
    """Leave-one-out records of one person whose histories have `length` items."""
    items = [item(f"{name}.{k}") for k in range(length + 1)]
    return [
        User(
            f"{name}{k}",
            tuple(items[:k] + items[k + 1 :]),
            (Query(f"{name}{k}-q", f"Generate a headline: {items[k].get('text')}", items[k].get("title")),),
        )
        for k in range(siblings)
    ]


def crowd() -> list[User]:
    """Twenty people with three records each of ten items, five with one record of thirty."""
    return [u for n in range(20) for u in records(f"p{n}-", length=10, siblings=3)] + [
        u for n in range(5) for u in records(f"long{n}-", length=30)
    ]


def test_split_keeps_people_apart() -> None:
    users = crowd()
    split = build_split(users, history_length=10, count=8, seed=1)
    report = split.report
    assert len(split.targets) == 8
    assert all(len(user.history) == 10 for user in split.targets)
    assert len({user.user_id.split("-")[0] for user in split.targets}) == 8
    assert {u.user_id.split("-")[0] for u in split.pool}.isdisjoint({u.user_id.split("-")[0] for u in split.targets})
    assert dataclasses.astuple(report) == (65, 25, 20, 8, 12 * 3 + 5, 17, 16, 0, 0)
    check_disjoint(split.pool, split.targets)


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    users = crowd()

    def drawn(given: list[User], seed: int) -> set[str]:
        return {user.user_id for user in build_split(given, history_length=10, count=8, seed=seed).targets}

    assert drawn(users, 1) == drawn(users[::-1], 1)
    assert len({frozenset(drawn(users, seed)) for seed in range(5)}) == 5


def test_a_range_of_lengths_and_too_few_people() -> None:
    split = build_split(crowd(), history_length=10, max_history_length=30, count=24, seed=0)
    assert {len(user.history) for user in split.targets} == {10, 30}
    with pytest.raises(
        DataError, match=r"got 5 people with 30 history items.*wanted 6; histories here are from 10 to 30"
    ):
        build_split(crowd(), history_length=30, count=6, seed=0)
    with pytest.raises(DataError, match="nobody is left for the pool"):
        build_split(crowd(), history_length=10, max_history_length=30, count=25, seed=0)
    with pytest.raises(DataError, match="histories here are of nobody"):
        build_split([], history_length=10, seed=0)


def test_targets_need_a_gold_answer() -> None:
    users = [User(u.user_id, u.history, tuple(Query(q.query_id, q.text) for q in u.queries)) for u in crowd()]
    with pytest.raises(DataError, match="got 0 people"):
        build_split(users, history_length=10, count=1, seed=0)


def test_open_questions_are_left_out_of_both_sides_and_counted() -> None:
    users = [dataclasses.replace(u, queries=(Query(f"{u.user_id}-open", "And now?"), *u.queries)) for u in crowd()]
    split = build_split(users, history_length=10, count=8, seed=1)
    assert split.report.dropped_questions == len(users)
    assert split == dataclasses.replace(build_split(crowd(), history_length=10, count=8, seed=1), report=split.report)


def test_wrong_settings_and_repeated_ids() -> None:
    users = crowd()
    for options in ({"history_length": 0}, {"history_length": 5, "max_history_length": 4}):
        with pytest.raises(ConfigError, match="cannot split"):
            build_split(users, seed=0, **options)
    with pytest.raises(DataError, match="repeated user ids"):
        build_split([*users, users[0]], history_length=10, count=1, seed=0)


def test_who_holds_a_targets_answer_leaves_the_pool() -> None:
    target = records("t", length=10)[0]
    reader = User("reader", (*(item(f"r{k}") for k in range(20)), item("t.0")))
    assert find_leaks([reader], [target]).seen_answers == (("reader", "t0-q"),)
    split = build_split([target, reader, *records("z", length=3)], history_length=10, count=1, seed=0)
    assert [user.user_id for user in split.pool] == ["z0"]
    assert split.report.dropped_seen == 1


def test_seen_text_with_another_answer_is_no_leak() -> None:
    target = records("t", length=10)[0]
    other = HistoryItem("x", {**item("t.0").fields, "title": "quite another headline"})
    check_disjoint([User("reader", (other,))], [target])


def test_answers_in_the_own_history_are_found_with_the_same_answer_only() -> None:
    user = records("t", length=10)[0]  # asked about t.0, which the history lacks
    other = HistoryItem("x", {**item("t.0").fields, "title": "quite another headline"})
    again = HistoryItem("again", {name: f"  {text.upper()} " for name, text in item("t.0").fields.items()})
    assert answers_in_own_history([user, User("empty", ()), User("idle", user.history)]) == ()
    assert answers_in_own_history([dataclasses.replace(user, history=(*user.history, other))]) == ()
    holder = dataclasses.replace(user, user_id="holder", history=(*user.history, other, again))
    assert answers_in_own_history([user, holder]) == (("holder", "t0-q"),)
    unknown = (Query("open", user.queries[0].text),)
    assert answers_in_own_history([dataclasses.replace(holder, queries=unknown)]) == (("holder", "open"),)
    neighbour = User("neighbour", (again,))
    assert answers_in_own_history([user, neighbour]) == ()


def test_check_names_every_kind_of_leak() -> None:
    ann, sister = records("a", length=10, siblings=2)
    twin = User("b", records("b", length=3)[0].history)
    with pytest.raises(DataError) as caught:
        check_disjoint([ann, twin], [sister, User("b", ())])
    message = str(caught.value)
    assert "1 shared user ids ('b')" in message
    assert "1 pairs (pool, target) of one person ('a0' = 'a1')" in message
    assert "1 target queries answered in a pool history ('a0' = 'a1-q')" in message
    assert "leave the 2 pool users out" in message


def test_films_may_be_shared_under_the_movie_rule() -> None:
    target = records("t", length=10)[0]
    fan = User("fan", (item("t.0"), *target.history[:4], *(item(f"f{k}") for k in range(5))))
    check_disjoint([fan], [target], rule=rule_for("lamp-2"))
    with pytest.raises(DataError, match="answered in a pool history"):
        check_disjoint([fan], [target], rule=rule_for("lamp-5"))


def test_ids_are_trusted_where_they_are_known_to_be_people() -> None:
    """Many people who ask the same and answer alike, as the users of one product do."""
    texts = [("Reply to: thanks", "You are welcome."), ("Reply to: are you there?", "Yes."), ("Say hello", "Hello!")]
    items = tuple(HistoryItem(str(k), {"input": asked, "output": said}) for k, (asked, said) in enumerate(texts))
    users = [User(name, items, ()) for name in ("ann", "bob", "cal")]
    with pytest.raises(DataError, match="name the task own-by-id"):
        check_disjoint(users[1:], users[:1], rule=rule_for("own"))
    known = rule_for("own-by-id")
    check_disjoint(users[1:], users[:1], rule=known)
    assert find_people(users, rule=known) == [("ann",), ("bob",), ("cal",)]
    with pytest.raises(DataError, match="1 shared user ids"):
        check_disjoint(users, users[:1], rule=known)


def test_drop_leaks_leaves_a_pool_that_passes() -> None:
    users = crowd()
    targets, pool = users[::3], users[1::3] + users[2::3]
    kept, leaks = drop_leaks(pool, targets)
    check_disjoint(kept, targets)
    assert kept
    assert len(kept) + len(leaks.pool_users) == len(pool)


REAL = {
    "LaMP_1": "lamp-1",
    "LaMP_2": "lamp-2",
    "LaMP_3": "lamp-3",
    "LaMP_3_critics": "lamp-3",
    "LaMP_4": "lamp-4",
    "LaMP_5": "lamp-5",
}


@pytest.mark.parametrize("folder", list(REAL))
def test_real_pools_and_targets(lamp_real: Path, folder: str) -> None:
    pool, targets = (read_lamp(lamp_real / folder / f"{side}_questions.json") for side in ("pool", "target"))
    rule = rule_for(REAL[folder])
    leaks = find_leaks(pool, targets, rule=rule)
    assert leaks.shared_ids == leaks.seen_answers == ()
    # LaMP_5 has two authors with 25 of 28 papers in common: by their histories one person, and reported as such
    assert len(leaks.same_people) == (folder == "LaMP_5")
    kept, _ = drop_leaks(pool, targets, rule=rule)
    assert len(pool) - len(kept) == (folder == "LaMP_5")
    check_disjoint(kept, targets, rule=rule)


@pytest.mark.parametrize("folder", ["LaMP_1", "LaMP_2", "LaMP_5"])
def test_real_users_are_mostly_different_people(lamp_real: Path, folder: str) -> None:
    """Co-authors and fans of the same films must not melt into one big person."""
    pool = read_lamp(lamp_real / folder / "pool_questions.json")
    assert len(find_people(pool, rule=rule_for(REAL[folder]))) >= len(pool) - 1
    assert len(find_people(pool, rule=SHARED_ITEMS)) > len(find_people(pool))


def test_a_leak_planted_in_real_data_is_found(lamp_real: Path) -> None:
    pool, targets = (read_lamp(lamp_real / "LaMP_4" / f"{side}_questions.json") for side in ("pool", "target"))
    copy = User("somebody-else", targets[3].history[1:])
    with pytest.raises(DataError, match=f"'somebody-else' = {targets[3].user_id!r}"):
        check_disjoint([*pool, copy], targets, rule=rule_for("lamp-4"))
