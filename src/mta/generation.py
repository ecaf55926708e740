"""Answers of many users in shared batches: greedy text, and how likely labels or gold answers are.

Every request carries its own adapter (another overlay, or none for the bare base model). Requests of all users share
batches; each batch holds its distinct adapters side by side and routes every row to its own.

Example:
    >>> generate(base, [Request(row, adapter)], max_new_tokens=10, engine=EngineConfig())
    ['comedy']
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import TypeVar

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from mta.base_model import BaseModel
from mta.candidates import candidate_scores
from mta.config import EngineConfig
from mta.forward import answer_nll
from mta.kv_cache import RoomyCache
from mta.lora.attach import attached
from mta.lora.frozen_stack import inference_stack
from mta.lora.stacked import Finished
from mta.memory_at_hand import halve_until_it_fits
from mta.mixing import NextTokenMixing, mixed_logs
from mta.packing import Batch, TokenRow, fill_packs, left_pad, length_buckets, pack_rows
from mta.padded_attention import padding_left_out_on, without_padding

T = TypeVar("T")
Take = Callable[[Sequence[int]], None]
PART_TOKENS = 2048
"""Tokens, with padding, that a CPU reads of a batch's prompts at once."""

PROMPT = "one prompt and its answer"


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer, with the adapter that answers it."""

    row: TokenRow
    adapter: Finished | None = None


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several ways to answer one question with one text: the next token's probability is the mean of theirs.

    p(token | question, answer so far) = sum_w share_w p_w(token | prompt_w, answer so far)
    """

    requests: tuple[Request, ...]
    shares: tuple[float, ...]
    """Of each, above 0; they sum to 1."""


Asked = Request | Mixture


def generate(
    base: BaseModel,
    requests: Sequence[Asked],
    *,
    max_new_tokens: int,
    engine: EngineConfig,
) -> list[str]:
    """Answer every request greedily.

    Args:
        base: the frozen model.
        requests: prompts; `row.answer` is ignored.
        max_new_tokens: longest answer in tokens.
        engine: packing.

    Returns:
        One text per request, in order, without special tokens.
    """
    texts = [""] * len(requests)

    def complete(chosen: Sequence[Asked]) -> list[str]:
        rows = [request for asked in chosen for request in _ways(asked).requests]
        prompts = _prompts(base, rows)
        with torch.no_grad(), routed(base, [r.adapter for r in rows]) as take:
            cache = prefill(base, prompts, room=max_new_tokens, take=take)
            return _completions(base, prompts, cache, chosen, max_new_tokens)

    for indices, batch in _batches(requests, lambda asked: _room(asked, (), max_new_tokens), engine):
        for index, text in zip(indices, halve_until_it_fits(complete, batch, what=PROMPT), strict=True):
            texts[index] = text
    return texts


@dataclass(frozen=True, slots=True)
class Answered:
    """A greedy answer, and how likely each of some texts would have been instead."""

    text: str
    """Without special tokens."""
    scores: Tensor
    """(C,) log-probability of each candidate's tokens given the prompt, float64 on the CPU."""
    tempered: Tensor
    """(T, C) the same at each of the temperatures that were asked for."""


def _answered(text: str, ways: Sequence[Sequence[Tensor]], shares: Sequence[float]) -> Answered:
    """Put an answer together.

    Args:
        text: what was answered.
        ways: W ways, of each for each of C candidates (1 + T, tokens) log-probabilities.
        shares: of the W ways.
    """
    found = [mixed_logs(torch.stack(one), shares).sum(dim=1) for one in zip(*ways, strict=True)]
    scores = torch.stack(found, dim=1)  # (1 + T, C)
    return Answered(text, scores[0], scores[1:])


def answer_and_score(
    base: BaseModel,
    requests: Sequence[Asked],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    max_new_tokens: int,
    engine: EngineConfig,
    repetition_penalty: float = 1.0,
    temperatures: Sequence[float] = (),
    on_progress: Callable[[int], None] | None = None,
) -> list[Answered]:
    """Answer every request greedily and score its candidates; the prompt is read once for both.

    All candidates of a request follow its prompt in one row; a mask keeps each from seeing the others, and each starts
    at the position right after the prompt, so that the scores equal those of separate rows.

    Args:
        base: the frozen model.
        requests: prompts, or mixtures of prompts; `row.answer` is ignored.
        candidates: for each request token sequences, each with its end-of-answer token: all labels, or the gold answer.
        max_new_tokens: longest answer in tokens.
        engine: packing.
        repetition_penalty: divides the scores of tokens in prompt and answer so far. With one, requests are answered
            one at a time: the padding of a batch would be penalized too.
        temperatures: T numbers that candidates are scored at besides 1, see `candidate_scores`.
        on_progress: called with the number of requests answered so far.

    Returns:
        One per request, in order. Exponentials of the scores sum to less than 1, since other texts are possible too.
    """
    answered: dict[int, Answered] = {}
    items = list(zip(requests, candidates, strict=True))
    engine = engine if repetition_penalty == 1 else replace(engine, predict_tokens_per_batch=1)

    def answer(chosen: Sequence[tuple[Asked, Sequence[Sequence[int]]]]) -> list[Answered]:
        mixtures = [_ways(asked) for asked, _ in chosen]
        rows = [request for mixture in mixtures for request in mixture.requests]
        scored = [texts for mixture, (_, texts) in zip(mixtures, chosen, strict=True) for _ in mixture.requests]
        prompts = _prompts(base, rows)
        with torch.no_grad(), routed(base, [r.adapter for r in rows]) as take:
            cache = prefill(base, prompts, room=max_new_tokens, take=take)
            warm = (1.0, *temperatures)
            scores = iter(candidate_scores(base, prompts, copy.deepcopy(cache), scored, temperatures=warm))
            texts = _completions(base, prompts, cache, mixtures, max_new_tokens, repetition_penalty)
        return [
            _answered(text, [next(scores) for _ in mixture.requests], mixture.shares)
            for text, mixture in zip(texts, mixtures, strict=True)
        ]

    for indices, batch in _batches(items, lambda item: _room(*item, max_new_tokens), engine):
        answered |= zip(indices, halve_until_it_fits(answer, batch, what=PROMPT), strict=True)
        if on_progress:
            on_progress(len(answered))
    return [answered[index] for index in range(len(items))]


def _ways(asked: Asked) -> Mixture:
    return asked if isinstance(asked, Mixture) else Mixture((asked,), (1.0,))


def _room(asked: Asked, candidates: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Tokens of the rows of one question, each as long as the longest."""
    requests = _ways(asked).requests
    longest = max(len(request.row.prompt) for request in requests)
    return len(requests) * (longest + max(max_new_tokens, sum(map(len, candidates))))


def _prompts(base: BaseModel, requests: Sequence[Request]) -> Batch:
    return left_pad([request.row.prompt for request in requests], pad_id=base.pad_id, device=base.device)


def prefill(base: BaseModel, prompts: Batch, *, room: int, take: Take) -> RoomyCache:
    """Return keys and values of the prompts without their last token, which whoever goes on reads again.

    The model's head stays out of it: nobody asks what comes after these tokens. A CPU reads rows of like length
    together, part after part of the batch: there is less padding, and what passes between layers stays in caches.

    Args:
        base: the frozen model, adapters attached.
        prompts: (B, P) tokens, padded on the left.
        room: tokens that will follow.
        take: what `routed` gives; all rows are taken when this returns.
    """
    cache, apart = RoomyCache(room), padding_left_out_on(base.device)
    batch, width = len(prompts.lengths), prompts.input_ids.shape[1] - 1
    read = [length - 1 for length in prompts.lengths]
    places = range(batch)
    parts = length_buckets(places, read.__getitem__, tokens_per_batch=PART_TOKENS) if apart else [list(places)]
    for rows in parts if width else ():
        columns = slice(width - max(1, *(read[row] for row in rows)), width)
        take(rows)
        with without_padding(base.model) if apart else nullcontext():
            base.model.get_decoder()(
                input_ids=prompts.input_ids[rows, columns],
                attention_mask=prompts.attention_mask[rows, columns],
                position_ids=prompts.position_ids[rows, columns],
                past_key_values=cache.part(rows, batch=batch, width=width),
                use_cache=True,
                row_lengths=[read[row] for row in rows],
            )
    take(places)
    return cache


def _completions(
    base: BaseModel,
    prompts: Batch,
    cache: RoomyCache,
    questions: Sequence[Asked],
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
) -> list[str]:
    """Go on greedily from the prompts, one text a question; the cache is used up."""
    mixtures = [_ways(asked) for asked in questions]
    output = base.model.generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        pad_token_id=base.pad_id,
        logits_processor=_mixing([mixture.shares for mixture in mixtures], base.device),
    )
    firsts = [0, *accumulate(len(mixture.requests) for mixture in mixtures)][:-1]
    made = output[firsts, prompts.input_ids.shape[1] :].tolist()
    return [base.tokens.decode(_until_end(ids, base.end_ids)) for ids in made]


def _mixing(shares: Sequence[Sequence[float]], device: torch.device) -> LogitsProcessorList | None:
    several = any(len(of_one) > 1 for of_one in shares)
    return LogitsProcessorList([NextTokenMixing(shares, device=device)]) if several else None


def _until_end(ids: list[int], end_ids: list[int]) -> list[int]:
    return list(takewhile(lambda token: token not in end_ids, ids))


def score_answers(base: BaseModel, requests: Sequence[Request], *, engine: EngineConfig) -> list[float]:
    """Return each request's negative log-likelihood of `row.answer`, summed over its tokens, in nats."""

    def score(chosen: Sequence[Request]) -> list[float]:
        pack = pack_rows([r.row for r in chosen], device=base.device)
        with torch.no_grad(), routed(base, [r.adapter for r in chosen], lengths=pack.lengths):
            found: list[float] = answer_nll(base, pack).tolist()
        return found

    packs = fill_packs(requests, lambda r: len(r.row), tokens_per_batch=engine.predict_tokens_per_batch)
    return [nll for pack in packs for nll in halve_until_it_fits(score, pack, what=PROMPT)]


def _batches(
    items: Sequence[T], length: Callable[[T], int], engine: EngineConfig
) -> Iterator[tuple[list[int], list[T]]]:
    buckets = length_buckets(
        list(enumerate(items)), lambda item: length(item[1]), tokens_per_batch=engine.predict_tokens_per_batch
    )
    for bucket in buckets:
        yield [index for index, _ in bucket], [item for _, item in bucket]


@contextmanager
def routed(
    base: BaseModel, adapters: Sequence[Finished | None], *, lengths: Sequence[int] | None = None
) -> Iterator[Take]:
    """Attach a batch's distinct adapters inside a block, and route each row to its own.

    Args:
        base: the frozen model.
        adapters: of each row; None is the bare base model.
        lengths: tokens of each row where they form a pack; None for a padded batch.

    Yields:
        What chooses the rows of a padded batch that the next passes are over; at first it is all of them.
    """
    distinct: dict[int, Finished | None] = {id(adapter): adapter for adapter in adapters}
    if all(adapter is None for adapter in distinct.values()):
        yield lambda rows: None
        return
    place = {key: index for index, key in enumerate(distinct)}
    targets = {name.rsplit(".", 1)[-1] for adapter in distinct.values() if adapter for name in adapter.modules}
    shapes = base.shapes(sorted(targets))
    stack = inference_stack(list(distinct.values()), shapes, device=base.device, dtype=base.dtype)
    numbers = [place[id(adapter)] for adapter in adapters]

    def take(rows: Sequence[int]) -> None:
        stack.route(torch.tensor([numbers[row] for row in rows], device=base.device))

    if lengths is None:
        take(range(len(adapters)))
    else:
        stack.route_pack(numbers, lengths)
    with attached(base.model, stack):
        yield take
