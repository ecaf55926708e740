"""How likely given texts are after a prompt whose keys and values are known already.

Example:
    >>> first_label, *others = candidate_scores(base, prompts, cache, [label_tokens] * len(prompts.input_ids))[0]
    >>> first_label.shape
    torch.Size([1, 3])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import Cache

from mta.base_model import BaseModel
from mta.packing import Batch

PROMPT, NOBODY = -1, -2
"""Owners of tokens that belong to no candidate: seen by all, and padding."""


TEMPERATURES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0)
"""What scores of next tokens may be divided by, to see at which texts would have been likeliest."""


def candidate_scores(
    base: BaseModel,
    prompts: Batch,
    cache: Cache,
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    temperatures: Sequence[float] = (1.0,),
) -> list[list[Tensor]]:
    """Score the tokens of texts that could follow each prompt.

    All candidates of a prompt follow it in one row; a mask keeps each from seeing the others, and each starts at the
    position right after the prompt, so that the scores equal those of separate rows.

    Args:
        base: the frozen model, adapters attached and rows routed.
        prompts: (B, P) tokens, padded on the left.
        cache: keys and values of all prompt tokens but the last; it is used up.
        candidates: for each prompt C token sequences.
        temperatures: T numbers that the scores of next tokens are divided by.

    Returns:
        For each prompt and candidate (T, tokens) log-probabilities, float64 on the CPU.
    """
    tails = _tails(prompts, candidates, base.pad_id)
    logits = base.model(
        input_ids=tails.ids,
        attention_mask=_tail_mask(prompts, tails, base),
        position_ids=tails.positions,
        past_key_values=cache,
        use_cache=True,
    ).logits
    return [
        _log_probabilities(row, texts, temperatures)
        for row, texts in zip(logits.to(torch.promote_types(logits.dtype, torch.float32)), candidates, strict=True)
    ]


def _log_probabilities(
    logits: Tensor, candidates: Sequence[Sequence[int]], temperatures: Sequence[float]
) -> list[Tensor]:
    """Return the log-probabilities of each candidate's tokens at each temperature.

    Args:
        logits: (1 + W, V), those after the prompt's last token and after each token of the candidates in a row.
        candidates: C token sequences of W tokens or fewer together.
        temperatures: T numbers.
    """
    # each candidate's first token is predicted by the prompt's last position, the others by the token before them
    starts = [0, *accumulate(map(len, candidates))]
    sources = [
        place
        for start, tokens in zip(starts, candidates, strict=False)
        for place in (0, *range(start + 1, start + len(tokens)))
    ]
    targets = [token for tokens in candidates for token in tokens]
    at = [(logits / temperature).log_softmax(-1)[sources, targets] for temperature in temperatures]
    return list(torch.split(torch.stack(at).double().cpu(), [len(tokens) for tokens in candidates], dim=1))


@dataclass(frozen=True, slots=True)
class _Tails:
    """What follows the cached tokens: each prompt's last token and its candidates, (B, 1 + W), padded on the right."""

    ids: Tensor
    positions: Tensor
    owner: Tensor
    """Number of the candidate a token belongs to, PROMPT or NOBODY."""


def _tails(prompts: Batch, candidates: Sequence[Sequence[Sequence[int]]], pad_id: int) -> _Tails:
    rows = [
        [(token, place + 1, number) for number, tokens in enumerate(texts) for place, token in enumerate(tokens)]
        for texts in candidates
    ]
    width = max(map(len, rows))
    values = torch.tensor([row + [(pad_id, 0, NOBODY)] * (width - len(row)) for row in rows], dtype=torch.int64)
    ids, offsets, owner = values.reshape(len(rows), width, 3).to(prompts.input_ids.device).unbind(-1)
    last = prompts.position_ids[:, -1:]
    return _Tails(
        ids=torch.cat([prompts.input_ids[:, -1:], ids], dim=1),
        positions=torch.cat([last, last + offsets], dim=1),
        owner=torch.cat([torch.full_like(last, PROMPT), owner], dim=1),
    )


def _tail_mask(prompts: Batch, tails: _Tails, base: BaseModel) -> Tensor | dict[str, Tensor]:
    """Build the additive mask (B, 1, 1 + W, P + W): causal, no padding, and no candidate sees another."""
    before = prompts.attention_mask[:, :-1].bool()  # (B, P - 1)
    owner = torch.cat([torch.full_like(before, PROMPT, dtype=torch.int64), tails.owner], dim=1)
    readable = torch.cat([before, tails.owner != NOBODY], dim=1)
    order = torch.arange(owner.shape[1], device=owner.device)
    place = order[before.shape[1] :, None]
    allowed = (order <= place) & readable[:, None]
    allowed &= (owner == PROMPT)[:, None] | (tails.owner[:, :, None] == owner[:, None])
    allowed |= order == place  # padding may see itself, not NaN
    full = _additive(allowed, base.dtype)
    text_config = base.model.config.get_text_config()
    if "sliding_attention" not in (getattr(text_config, "layer_types", None) or ()):
        return full
    positions = torch.cat([prompts.position_ids[:, :-1], tails.positions], dim=1)
    near = (tails.positions[:, :, None] - positions[:, None]) < text_config.sliding_window
    return {"full_attention": full, "sliding_attention": _additive(allowed & near, base.dtype)}


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)[:, None]
