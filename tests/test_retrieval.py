"""BM25 against its formula, and the corners: ties, blanks, unknown words, left-out items."""

from __future__ import annotations

import logging
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.retrieval import TextIndex, words_of

WORDS = st.sampled_from(["red", "blue", "car", "boat", "the", "a", "Sea"])
TEXTS = st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=8)


def slow_scores(query: str, texts: list[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """The BM25 formula of Lucene, term by term."""
    corpus = [text.lower().split() for text in texts]
    mean_length = sum(map(len, corpus)) / len(corpus)
    scores = []
    for words in corpus:
        score = 0.0
        for word in query.lower().split():
            frequency, holders = words.count(word), sum(word in other for other in corpus)
            idf = math.log(1 + (len(corpus) - holders + 0.5) / (holders + 0.5))
            if frequency:
                score += idf * frequency / (frequency + k1 * (1 - b + b * len(words) / mean_length))
        scores.append(score)
    return scores


@given(texts=TEXTS.filter(lambda texts: any(texts)), query=st.lists(WORDS, min_size=1, max_size=5).map(" ".join))
def test_ranking_follows_the_formula(texts: list[str], query: str) -> None:
    expected = slow_scores(query, texts)
    ranked = TextIndex(texts).rank(query, top_k=len(texts))
    assert sorted(ranked) == list(range(len(texts)))
    found = [expected[place] for place in ranked]
    assert all(better >= worse - 1e-9 for better, worse in pairwise(found))


@given(texts=TEXTS, query=WORDS, top_k=st.integers(0, 9), data=st.data())
def test_excluded_positions_never_appear_and_the_rest_keeps_its_order(
    texts: list[str], query: str, top_k: int, data: st.DataObject
) -> None:
    exclude = data.draw(st.sets(st.integers(0, max(len(texts) - 1, 0))))
    index = TextIndex(texts)
    everything = index.rank(query, top_k=len(texts))
    expected = [place for place in everything if place not in exclude][:top_k]
    assert index.rank(query, top_k=top_k, exclude=exclude) == expected


def test_equal_texts_keep_their_order() -> None:
    texts = ["blue boat"] + ["red car"] * 40 + ["blue boat"]
    assert TextIndex(texts).rank("red", top_k=42) == [*range(1, 41), 0, 41]


def test_case_does_not_matter_and_punctuation_does() -> None:
    assert words_of("The  Red\tcar.") == ["the", "red", "car."]
    assert TextIndex(["x", "RED car"]).rank("red", top_k=1) == [1]
    assert TextIndex(["red, x", "y red z w"]).rank("red", top_k=1) == [1]


@pytest.mark.parametrize("query", ["", "   ", "unknown words"])
def test_a_query_without_known_words_returns_the_first_texts(query: str) -> None:
    assert TextIndex(["red car", "blue boat", "green bus"]).rank(query, top_k=2) == [0, 1]


def test_few_or_blank_texts() -> None:
    assert TextIndex([]).rank("red", top_k=3) == []
    assert TextIndex(["red"]).rank("red", top_k=3) == [0]
    assert TextIndex(["red"]).rank("red", top_k=3, exclude={0}) == []
    assert TextIndex(["", " \n"]).rank("red", top_k=3) == [0, 1]
    assert TextIndex(["", "red", ""]).rank("red", top_k=1) == [1]
    assert len(TextIndex(["", "red"])) == 2


def test_top_k_zero_or_below_gives_nothing() -> None:
    assert TextIndex(["red", "blue"]).rank("red", top_k=0) == []
    assert TextIndex(["red", "blue"]).rank("red", top_k=-1) == []


def test_nothing_is_printed_or_logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        TextIndex(["red car", "blue boat"]).rank("red", top_k=1)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
