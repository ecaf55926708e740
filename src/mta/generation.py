"""Answers of many users in shared batches: greedy text, label scores, and likelihood of the gold answer.

Every request carries its own adapter (another overlay, or none for the bare base model). Requests of all users share
batches; each batch holds its distinct adapters side by side and routes every row to its own.

Example:
    >>> generate(base, [Request(row, adapter)], max_new_tokens=10, engine=EngineConfig())
    ['comedy']
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from mta.base_model import BaseModel
from mta.config import EngineConfig
from mta.forward import answer_nll
from mta.lora.adapter import Adapter
from mta.lora.attach import attached
from mta.lora.stacked import Overlay, inference_stack
from mta.packing import TokenRow, fill_packs, left_pad, length_buckets, pack_rows


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer, with the adapter that answers it."""

    row: TokenRow
    adapter: Adapter | Overlay | None = None


def generate(
    base: BaseModel,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    engine: EngineConfig,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Answer every request greedily.

    Args:
        base: the frozen model.
        requests: prompts; `row.answer` is ignored.
        max_new_tokens: longest answer in tokens.
        engine: packing.
        on_progress: called with the number of requests answered so far.

    Returns:
        One text per request, in order, without special tokens.
    """
    texts = [""] * len(requests)
    done = 0
    for indices, chosen in _batches(requests, lambda r: len(r.row.prompt) + max_new_tokens, engine):
        batch = left_pad([r.row.prompt for r in chosen], pad_id=base.pad_id, device=base.device)
        with torch.no_grad(), _routed(base, chosen):
            output = base.model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=base.pad_id,
            )
        for index, ids in zip(indices, output[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            texts[index] = base.tokens.decode(_until_end(ids, base.end_ids))
        done += len(chosen)
        if on_progress:
            on_progress(done)
    return texts


def _until_end(ids: list[int], end_ids: list[int]) -> list[int]:
    return list(takewhile(lambda token: token not in end_ids, ids))


def score_answers(base: BaseModel, requests: Sequence[Request], *, engine: EngineConfig) -> list[float]:
    """Return each request's negative log-likelihood of `row.answer`, summed over its tokens, in nats."""
    results: list[float] = []
    for chosen in fill_packs(requests, lambda r: len(r.row), tokens_per_batch=engine.predict_tokens_per_batch):
        pack = pack_rows([r.row for r in chosen], device=base.device)
        with torch.no_grad(), _routed(base, chosen, lengths=pack.lengths):
            results += answer_nll(base, pack).tolist()
    return results


def score_labels(
    base: BaseModel, requests: Sequence[Request], labels: Sequence[Sequence[int]], *, engine: EngineConfig
) -> Tensor:
    """Score every label after every prompt, in one forward pass per batch.

    All labels follow the prompt in one row; a mask keeps each label from seeing the others, and each starts at the
    position right after the prompt, so that the scores equal those of L separate rows.

    Args:
        base: the frozen model.
        requests: prompts; `row.answer` is ignored.
        labels: L token sequences, each with its end-of-answer token.
        engine: packing.

    Returns:
        (requests, L) log-probability of each label's tokens given the prompt, float64 on the CPU. Exponentials of a row
        sum to less than 1, since other texts are possible too.
    """
    scores = torch.zeros(len(requests), len(labels), dtype=torch.float64)
    block = sum(map(len, labels))
    for indices, chosen in _batches(requests, lambda r: len(r.row.prompt) + block, engine):
        with torch.no_grad(), _routed(base, chosen):
            scores[indices] = _label_scores(base, [r.row.prompt for r in chosen], labels)
    return scores


def _label_scores(base: BaseModel, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Tensor:
    tail = [token for label in labels for token in label]
    batch = left_pad([[*prompt, *tail] for prompt in prompts], pad_id=base.pad_id, device=base.device)
    positions = batch.position_ids.clone()
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=base.device)
    offsets = torch.tensor([place for label in labels for place in range(len(label))], device=base.device)
    positions[:, -len(tail) :] = lengths[:, None] + offsets
    mask = _label_mask(batch.attention_mask, positions, labels, base)
    logits = base.model(
        input_ids=batch.input_ids,
        attention_mask=mask,
        position_ids=positions,
        logits_to_keep=len(tail) + 1,
        use_cache=False,
    ).logits
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)  # (batch, tail + 1, V)
    scores, start = [], 0
    for label in labels:
        # the label's first token is predicted by the prompt's last position, the others by the token before them
        sources = [0, *range(start + 1, start + len(label))]
        scores.append(log_probs[:, sources, list(label)].sum(dim=1))
        start += len(label)
    return torch.stack(scores, dim=1).double().cpu()


def _label_mask(
    attention_mask: Tensor, positions: Tensor, labels: Sequence[Sequence[int]], base: BaseModel
) -> Tensor | dict[str, Tensor]:
    """Build the additive mask (batch, 1, T, T): causal, no padding, and no label sees another."""
    width, tail = attention_mask.shape[1], sum(map(len, labels))
    owner = torch.full((width,), -1, device=positions.device)
    owner[width - tail :] = torch.tensor([i for i, label in enumerate(labels) for _ in label], device=positions.device)
    order = torch.arange(width, device=positions.device)
    causal = order[:, None] >= order[None, :]
    visible = causal & ((owner[None, :] == -1) | (owner[:, None] == owner[None, :]))
    allowed = visible[None] & attention_mask[:, None, :].bool()
    allowed = allowed | torch.eye(width, dtype=torch.bool, device=positions.device)  # padding may see itself, not NaN
    full = _additive(allowed, base.dtype)
    text_config = base.model.config.get_text_config()
    if "sliding_attention" not in (getattr(text_config, "layer_types", None) or ()):
        return full
    near = (positions[:, :, None] - positions[:, None, :]) < text_config.sliding_window
    return {"full_attention": full, "sliding_attention": _additive(allowed & near, base.dtype)}


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)[:, None]


def _batches(
    requests: Sequence[Request], length: Callable[[Request], int], engine: EngineConfig
) -> Iterator[tuple[list[int], list[Request]]]:
    buckets = length_buckets(
        list(enumerate(requests)), lambda item: length(item[1]), tokens_per_batch=engine.predict_tokens_per_batch
    )
    for bucket in buckets:
        yield [index for index, _ in bucket], [request for _, request in bucket]


def _routed(
    base: BaseModel, requests: Sequence[Request], *, lengths: Sequence[int] | None = None
) -> AbstractContextManager[None]:
    """Attach the batch's distinct adapters and route each row to its own; `lengths` are those of a pack's rows."""
    distinct: dict[int, Adapter | Overlay | None] = {id(r.adapter): r.adapter for r in requests}
    if all(adapter is None for adapter in distinct.values()):
        return nullcontext()
    place = {key: index for index, key in enumerate(distinct)}
    targets = {name.rsplit(".", 1)[-1] for adapter in distinct.values() if adapter for name in adapter.modules}
    shapes = base.shapes(sorted(targets))
    stack = inference_stack(list(distinct.values()), shapes, device=base.device, dtype=base.dtype)
    rows = [place[id(r.adapter)] for r in requests]
    if lengths is None:
        stack.route(torch.tensor(rows, device=base.device))
    else:
        stack.route_pack(rows, lengths)
    return attached(base.model, stack)
