"""Batches of unequal rows: who goes with whom, and what padding looks like."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.packing import WORTH_SHARING, TokenRow, fill_packs, left_pad, length_buckets, pack_rows, shared_beginning


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_buckets_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    items = list(enumerate(lengths))
    buckets = length_buckets(items, lambda item: item[1], tokens_per_batch=budget)
    assert sorted(item for bucket in buckets for item in bucket) == items
    for bucket in buckets:
        longest = max(length for _, length in bucket)
        assert longest * len(bucket) <= budget or len(bucket) == 1
    flat = [item for bucket in buckets for item in bucket]
    assert flat == sorted(flat, key=lambda item: (-item[1], item[0])), "longest first, ties in input order"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_no_bucket_could_take_the_next_item(lengths: list[int], budget: int) -> None:
    buckets = length_buckets(lengths, lambda length: length, tokens_per_batch=budget)
    for bucket in buckets[:-1]:
        assert bucket[0] * (len(bucket) + 1) > budget


def test_nothing_gives_no_bucket() -> None:
    assert length_buckets([], len, tokens_per_batch=10) == []


def test_padding_by_hand() -> None:
    batch = left_pad([(7, 8, 9), (5,), (4, 6)], pad_id=0, device="cpu")
    assert batch.input_ids.tolist() == [[7, 8, 9], [0, 0, 5], [0, 4, 6]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(0, 3))
def test_padding_can_be_taken_off_again(sequences: list[list[int]], pad_id: int) -> None:
    """Also where the padding token occurs in a row: the mask alone says what is real."""
    batch = left_pad(sequences, pad_id=pad_id, device="cpu")
    width = max(map(len, sequences))
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.position_ids.shape == (len(sequences), width)
    for row, sequence in enumerate(sequences):
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row][real].tolist() == sequence
        assert batch.input_ids[row][~real].eq(pad_id).all()
        assert batch.position_ids[row][real].tolist() == list(range(len(sequence)))
        assert real.tolist() == sorted(real.tolist()), "padding stands on the left"


@pytest.mark.parametrize(("prompt", "answer", "length"), [((1, 2, 3), (4,), 4), ((1,), (), 1), ((), (), 0)])
def test_length_of_a_row_counts_prompt_and_answer(prompt: tuple, answer: tuple, length: int) -> None:
    assert len(TokenRow(prompt, answer, cut_words=5)) == length


def test_packing_by_hand() -> None:
    pack = pack_rows([TokenRow((7, 8, 9), (4, 2)), TokenRow((5,), (2,)), TokenRow((6, 6), (3, 2))], device="cpu")
    assert pack.input_ids.tolist() == [[7, 8, 9, 4, 5, 6, 6, 3]], "a row's last answer token predicts nothing"
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 0, 0, 1, 2]]
    assert pack.lengths == (4, 1, 3)
    assert pack.sources.tolist() == [2, 3, 4, 6, 7]
    assert pack.targets.tolist() == [4, 2, 2, 3, 2]
    assert pack.owners.tolist() == [0, 0, 1, 2, 2]


BEGINNING = tuple(range(100, 100 + WORTH_SHARING))


def test_rows_of_one_adapter_share_their_beginning_by_hand() -> None:
    rows = [TokenRow((*BEGINNING, 7, 8), (4, 2)), TokenRow((*BEGINNING, 5), (2,)), TokenRow((*BEGINNING, 6), (3, 2))]
    pack = pack_rows(rows, device="cpu", adapters=["ada", "ada", "bob"])
    n = WORTH_SHARING
    assert pack.input_ids.tolist() == [[*BEGINNING, 7, 8, 4, 5, *BEGINNING, 6, 3]]
    assert pack.position_ids.tolist() == [[*range(n), n, n + 1, n + 2, n, *range(n + 2)]]
    assert pack.lengths == (n, 3, 1, n + 2)
    assert pack.before == (None, 0, 0, None)
    assert pack.rows == (0, 0, 1, 2)
    assert pack.sources.tolist() == [n + 1, n + 2, n + 3, 2 * n + 4, 2 * n + 5]
    assert pack.targets.tolist() == [4, 2, 2, 3, 2]
    assert pack.owners.tolist() == [0, 0, 1, 2, 2]


def test_people_of_one_adapter_share_nothing_with_each_other() -> None:
    rows = [TokenRow((*BEGINNING, 7), (2,), person=person) for person in (0, 1, 1)]
    pack = pack_rows(rows, device="cpu", adapters=["one"] * 3)
    assert pack.before == (None, None, 1, 1)
    assert pack.people == (0, 1, 1, 1)
    assert pack_rows(rows, device="cpu").before == (None, None, None), "nothing is shared unless adapters are told"


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        ([(*BEGINNING, 1)], 0),
        ([(*BEGINNING, 1), (*BEGINNING, 2)], WORTH_SHARING),
        ([(*BEGINNING[1:], 1), (*BEGINNING[1:], 2)], 0),
        ([(*BEGINNING, 1, 3), (*BEGINNING, 1)], WORTH_SHARING),  # the shorter one keeps its last token
        ([(*BEGINNING, 1)] * 2, WORTH_SHARING),
        ([(*BEGINNING, 3, 1), (*BEGINNING, 3, 2), (5,)], 0),
    ],
)
def test_how_much_of_a_beginning_is_shared(prompts: list, wanted: int) -> None:
    assert shared_beginning(prompts) == wanted


@given(st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 1), min_size=1, max_size=12)), min_size=1))
def test_segments_put_together_are_the_rows(drawn: list[tuple[int, list[int]]]) -> None:
    rows = [TokenRow(tuple(prompt), (5, 2)) for _, prompt in drawn]
    pack = pack_rows(rows, device="cpu", adapters=[adapter for adapter, _ in drawn])
    parts = [part.tolist() for part in pack.input_ids[0].split(pack.lengths)]
    begins = {before for before in pack.before if before is not None}
    whole = [
        (*(parts[before] if before is not None else ()), *part, 2)
        for number, (part, before) in enumerate(zip(parts, pack.before, strict=True))
        if number not in begins
    ]
    assert whole == [row.prompt + row.answer for row in rows]
    assert pack.input_ids[0][pack.sources[1::2]].tolist() == [5] * len(rows)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_packs_keep_the_order_within_the_budget(lengths: list[int], budget: int) -> None:
    packs = fill_packs(lengths, lambda length: length, tokens_per_batch=budget)
    assert [length for pack in packs for length in pack] == lengths
    assert all(sum(pack) <= budget or len(pack) == 1 for pack in packs)
    assert all(sum(pack) + following[0] > budget for pack, following in pairwise(packs))
