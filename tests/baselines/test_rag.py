"""Retrieval alone: the untouched model, k items in the prompt, chosen by words or by vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_base
from mta.baselines.methods import METHODS
from mta.baselines.rag import dense_retriever
from mta.encoders import HashingEncoder
from mta.evaluation.predict import examples_of, predict
from mta.personalize import Personalized, Resources
from mta.records import HistoryItem, Query, User
from mta.tasks.examples import BM25, query_examples
from small_world import ADAPT, ENCODER, ENGINE, OWN, PROMPTS, person


def resources(folder: Path) -> Resources:
    base = tiny_base(torch.float32)
    return Resources(
        base=base, task=OWN, prompts=PROMPTS, adapt=ADAPT, folder=folder, encoder=ENCODER, engine=ENGINE
    )  # fmt: skip


def served(name: str, user: User, folder: Path) -> Personalized:
    return METHODS[name]([user], resources(folder)).users[user.user_id]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("kind", ["rag", "rag-dense"])
def test_k_items_are_shown_on_the_bare_model(tmp_path: Path, kind: str, k: int) -> None:
    one = served(f"{kind}-{k}", person("ann", items=4), tmp_path)
    (example,) = examples_of(one)
    assert one.adapter is None
    assert len(one.render(example).history) == min(k, 4)
    assert not list(tmp_path.iterdir())


def by_hand(encoder: HashingEncoder, user: User, query: str, k: int) -> list[str]:
    """Cosines one by one, without the package's retrieval."""

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.double() @ b.double()) / (a.double().norm() * b.double().norm()))

    asked = encoder.embed([query])[0]
    texts = [OWN.retrieval_text(item) for item in user.history]
    scores = [cosine(asked, encoder.embed([text])[0]) for text in texts]
    order = sorted(range(len(texts)), key=lambda place: -scores[place])
    return [user.history[place].item_id for place in order[:k]]


def test_dense_items_are_those_closest_by_cosine() -> None:
    texts = ["red car fast", "blue boat", "fast blue car", "a green tree", "boat and car"]
    history = tuple(HistoryItem(f"i{n}", {"input": text, "output": "x"}) for n, text in enumerate(texts))
    user = User("ann", history, (Query("q", "a fast car", "x"),))
    (example,) = query_examples(OWN, user, history_k=3, retriever=dense_retriever(ENCODER))
    assert [item.item_id for item in example.history] == by_hand(ENCODER, user, "a fast car", 3)


def test_dense_hides_what_must_be_hidden_and_stands_an_empty_history() -> None:
    user = person("ann", items=3)
    search = dense_retriever(ENCODER).index(OWN, user.history)
    fields = {"input": "garden ann 1"}
    first = search(fields, 1, ())[0].item_id
    assert first not in {item.item_id for item in search(fields, 3, {first})}
    assert search(fields, 0, ()) == ()
    assert dense_retriever(ENCODER).index(OWN, ())(fields, 2, ()) == ()


def test_one_item_by_words_is_the_base_row(tmp_path: Path) -> None:
    """The base row shows one BM25 item too, so rag-1 must answer as it does."""
    user = person("ann", items=4, queries=2)
    have = resources(tmp_path)
    answers = [
        predict([METHODS[name]([user], have).users["ann"]], base=have.base, engine=ENGINE).rows
        for name in ("base", "rag-1")
    ]
    assert answers[0] == answers[1]


def test_without_a_loaded_encoder_the_one_of_the_match_is_loaded(tmp_path: Path) -> None:
    have = resources(tmp_path)
    have = replace(have, encoder=None, match=replace(have.match, encoder="tiny-random"))
    one = METHODS["rag-dense-3"]([person("ann")], have).users["ann"]
    assert one.retriever.name == dense_retriever(ENCODER).name != BM25.name
