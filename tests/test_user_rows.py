"""From histories to token rows: leave-one-out, and held-out items that no training row knows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config import PromptConfig, TrainConfig
from mta.errors import DataError
from mta.packing import TokenRow
from mta.prompt_tokens import PromptTokenizer
from mta.prompting import render
from mta.records import HistoryItem, User
from mta.tasks import get_task
from mta.tasks.examples import training_examples
from mta.tiny_model import byte_tokenizer
from mta.user_rows import UserRows, user_rows

TOKENS = PromptTokenizer(byte_tokenizer(), context=4096)
PROMPTS = PromptConfig(history_k=9, template="plain")
TRAIN = TrainConfig()
OWN, CITATION = get_task("own"), get_task("lamp-1")


def writer(count: int, *, name: str = "ann") -> User:
    """Item number 7 asks in07 and answers out07, so that every appearance of it can be found."""
    rows = (HistoryItem(f"i{n}", {"input": f"common words in{n:02}", "output": f"out{n:02}"}) for n in range(count))
    return User(name, tuple(rows))


def author(count: int, *, citing: bool = True) -> User:
    def row(n: int) -> dict[str, str]:
        return {"title": f"paper in{n:02}", "abstract": f"text abs{n:02}"} | (
            {"citation": f"cites out{n:02}"} if citing else {}
        )

    return User("ann", tuple(HistoryItem(f"i{n}", row(n)) for n in range(count)))


def made(user: User, *, task=OWN, prompts: PromptConfig = PROMPTS, **changes: object) -> UserRows:
    return user_rows(TOKENS, task, user, train=replace(TRAIN, **changes), prompts=prompts)


def seen(row: TokenRow) -> set[int]:
    """Numbers of the items whose words are in a row, prompt or answer."""
    text = TOKENS.decode([*row.prompt, *row.answer])
    return {int(number) for number in re.findall(r"(?:in|out|abs)(\d\d)", text)}


def asked(row: TokenRow) -> int:
    """Number of the item a row was made from: the last one its prompt names."""
    return int(re.findall(r"in(\d\d)", TOKENS.decode([*row.prompt]))[-1])


def test_rows_are_the_rendered_leave_one_out_examples() -> None:
    user, prompts = writer(5), replace(PROMPTS, history_k=2)
    found = made(user, prompts=prompts)
    examples = training_examples(OWN, user, history_k=2, seed=TRAIN.seed).examples
    assert found.rows == tuple(TOKENS.row(render(OWN, e, prompts), e.answer, prompts) for e in examples)
    assert [asked(row) for row in found.rows] == [0, 1, 2, 3, 4]
    assert all(len(seen(row)) == 3 for row in found.rows)
    assert (found.user_id, found.held_out, found.source, found.skipped) == ("ann", (), "history items", 0)


def test_every_other_item_may_be_shown_but_an_item_never_shows_itself() -> None:
    for row in made(writer(5)).rows:
        prompt = TOKENS.decode([*row.prompt])
        assert seen(row) == {0, 1, 2, 3, 4}
        assert f"out{asked(row):02}" not in prompt


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 14), share=st.floats(0, 0.99), seed=st.integers(0, 50), latest=st.integers(0, 12))
def test_held_out_items_are_neither_learned_nor_shown(count: int, share: float, seed: int, latest: int) -> None:
    found = made(writer(count), held_out_share=share, seed=seed, max_items=latest)
    candidates = set(range(count)) if latest == 0 else set(range(max(0, count - latest), count))
    held = {asked(row) for row in found.held_out}
    learned = {asked(row) for row in found.rows}
    assert held | learned == candidates
    assert not held & learned
    assert len(held) == (min(round(len(candidates) * share), len(candidates) - 1) if len(candidates) >= 4 else 0)
    for row in found.rows:
        assert not seen(row) & held
    for row in found.held_out:
        assert seen(row) & held == {asked(row)}
        assert f"out{asked(row):02}" not in TOKENS.decode([*row.prompt])


@settings(max_examples=30, deadline=None)
@given(count=st.integers(4, 12), share=st.floats(0.1, 0.6), seed=st.integers(0, 50))
def test_a_held_out_citation_is_no_wrong_option_either(count: int, share: float, seed: int) -> None:
    found = made(author(count), task=CITATION, held_out_share=share, seed=seed)
    everybody = made(author(count), task=CITATION, seed=seed)
    assert len(everybody.rows) == count
    learned = [seen(row) for row in found.rows]
    assert len(found.held_out) == round(count * share)
    for row in found.held_out:
        (unseen,) = seen(row) - set().union(*learned)
        assert f"in{unseen:02}" in TOKENS.decode([*row.prompt])


def test_the_split_is_the_users_own_and_lasts() -> None:
    def held(name: str, **changes: object) -> tuple[int, ...]:
        found = made(writer(14, name=name), held_out_share=0.3, **changes)
        return tuple(asked(row) for row in found.held_out)

    assert held("ann") == held("ann", lr=1.0, epochs=7)
    assert len({held("ann"), held("bob"), held("ann", seed=1)}) == 3


def test_the_last_items_become_examples_and_the_older_ones_are_still_shown() -> None:
    found = made(writer(6), max_items=2)
    assert [asked(row) for row in found.rows] == [4, 5]
    assert all(seen(row) == set(range(6)) for row in found.rows)
    assert len(made(writer(6), max_items=99).rows) == 6


def test_users_who_give_no_example() -> None:
    silent = author(3, citing=False)
    nothing = made(silent, task=CITATION)
    assert (nothing.rows, nothing.held_out, nothing.skipped) == ((), (), 3)
    proxy = made(silent, task=CITATION, allow_proxy=True)
    assert (len(proxy.rows), proxy.source, proxy.skipped) == (3, "title to abstract", 0)
    assert made(User("nobody", ())).rows == ()


def test_cut_rows_are_counted_in_both_parts() -> None:
    user = writer(8)
    whole = made(user, held_out_share=0.25)
    short = made(user, held_out_share=0.25, prompts=replace(PROMPTS, max_tokens=90))
    assert (whole.cut_rows, short.cut_rows) == (0, 8)
    assert [row.answer for row in short.rows] == [row.answer for row in whole.rows]


def test_an_answer_too_long_for_the_model_is_refused() -> None:
    item = HistoryItem("long", {"input": "a", "output": "b" * 100})
    with pytest.raises(DataError, match="more than 64 tokens"):
        made(User("ann", (item,)), prompts=replace(PROMPTS, max_tokens=64))
