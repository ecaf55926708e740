"""One forward pass over a pack of rows: the negative log-likelihood of each row's answer.

Used with gradients by training and without by scoring, so that both measure the same thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mta.base_model import BaseModel
from mta.lean_layers import lean_layers
from mta.packing import Pack
from mta.row_attention import rows_apart, segments


def answer_nll(base: BaseModel, pack: Pack) -> Tensor:
    """Return each row's summed negative log-likelihood of its answer tokens, (rows,) in nats.

    The model's head runs for the positions that predict an answer token only. The caller attaches and routes adapters.
    """
    with rows_apart(base.model), lean_layers(base.model):
        logits = base.model(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            logits_to_keep=pack.sources,
            use_cache=False,
            **segments(pack.lengths, pack.before, device=base.device),
        ).logits[0]  # (M, V)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = torch.nn.functional.cross_entropy(wide, pack.targets, reduction="none")  # (M,)
    return losses.new_zeros(max(pack.rows) + 1).index_add(0, pack.owners, losses)
