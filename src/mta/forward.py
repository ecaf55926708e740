"""One forward pass over a batch of rows: the negative log-likelihood of each row's answer.

Used with gradients by training and without by scoring, so that both measure the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mta.base_model import BaseModel
from mta.packing import TokenRow, left_pad


def answer_nll(base: BaseModel, rows: Sequence[TokenRow]) -> Tensor:
    """Return each row's summed negative log-likelihood of its answer tokens, (batch,) in nats.

    Padding is on the left, so all answers end in the last column and the model's head runs for the longest answer's
    positions only. The caller attaches and routes adapters.
    """
    batch = left_pad([row.prompt + row.answer for row in rows], pad_id=base.pad_id, device=base.device)
    longest = max(len(row.answer) for row in rows)
    logits = base.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits[:, :-1]  # (batch, longest, V): the logits that predict the last `longest` tokens
    targets = batch.input_ids[:, -longest:]
    losses = _token_losses(logits, targets)
    lengths = torch.tensor([len(row.answer) for row in rows], device=losses.device)
    in_answer = torch.arange(longest, device=losses.device) >= (longest - lengths)[:, None]
    return torch.where(in_answer, losses, torch.zeros_like(losses)).sum(dim=1)


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per token, (batch, n), in at least float32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = torch.nn.functional.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)
