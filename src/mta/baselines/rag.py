"""Retrieval alone: the untouched base model with k items of the user's own history in the prompt.

BM25 ranks by shared words, as everywhere else in the package; "dense" ranks by the cosine of sentence vectors of the
same texts, made by the bank's matching encoder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from mta.encoders import Encoder, embed_cached, load_encoder
from mta.merging import cosine_similarity
from mta.personalize import Personalized, PersonalizedUsers, Resources, renderer
from mta.records import HistoryItem, User
from mta.tasks.examples import BM25, Retriever, Search
from mta.tasks.task import Task
from mta.vector_cache import VectorCache


def rag(users: Sequence[User], resources: Resources, *, history_k: int, dense: bool = False) -> PersonalizedUsers:
    """Serve the base model with `history_k` retrieved items in every prompt.

    Args:
        users: with histories and queries.
        resources: base model, prompts; its matching encoder where `dense`.
        history_k: items shown, at most.
        dense: rank by sentence vectors instead of shared words.
    """
    prompts = replace(resources.prompts, history_k=history_k)
    render = renderer(resources.task, prompts)
    retriever = _dense(resources) if dense else BM25
    return PersonalizedUsers(
        {user.user_id: Personalized(user, resources.task, None, render, prompts, retriever=retriever) for user in users}
    )


def _dense(resources: Resources) -> Retriever:
    encoder = resources.encoder or load_encoder(resources.match.encoder, device=resources.base.device)
    return dense_retriever(encoder, resources.cache)


def dense_retriever(encoder: Encoder, cache: VectorCache | None = None) -> Retriever:
    """Return the retriever that shows the items whose texts are closest to the question by cosine.

    Question and items are the texts BM25 compares too. Equal similarities keep the order of the history.
    """
    return Retriever(f"dense {encoder.fingerprint}", partial(_index, encoder, cache))


def _index(encoder: Encoder, cache: VectorCache | None, task: Task, history: tuple[HistoryItem, ...]) -> Search:
    embed = partial(embed_cached, encoder, cache=cache)
    vectors = embed([task.retrieval_text(item) for item in history])  # (N, D)

    def search(fields: Mapping[str, str], history_k: int, hidden_ids: Collection[str]) -> tuple[HistoryItem, ...]:
        if not history or history_k < 1:
            return ()
        similarity = cosine_similarity(embed([task.retrieval_query(fields)]), vectors)[0]  # (N,)
        order = torch.sort(similarity, descending=True, stable=True).indices.tolist()
        found = [history[place] for place in order if history[place].item_id not in hidden_ids]
        return tuple(found[:history_k])

    return search
