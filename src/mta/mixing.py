"""Several ways to answer one question with one text, mixed token by token.

    p(token | question, answer so far) = sum_w share_w p_w(token | prompt_w, answer so far)

What a way alone would go on with counts at every token anew, so ways with other prompts, other anchors or other own
adapters help each other where each is unsure.

Example:
    >>> mixed_logs(torch.stack([logs_of_one_way, logs_of_another]), [0.7, 0.3])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mixed_logs(logs: Tensor, shares: Sequence[float]) -> Tensor:
    """Return (...) logs of the weighted mean of probabilities.

    Args:
        logs: (W, ...) log-probabilities under W ways.
        shares: of the ways; they sum to 1.
    """
    weights = torch.tensor(shares, dtype=logs.dtype, device=logs.device).log()
    return torch.logsumexp(logs + weights.reshape(-1, *[1] * (logs.dim() - 1)), dim=0)


class NextTokenMixing:
    """Gives all rows of a question the mean of their next tokens' probabilities, so that greedy ones stay together.

    A processor of logits as `transformers` calls them in generation.
    """

    def __init__(self, shares: Sequence[Sequence[float]], *, device: torch.device) -> None:
        """Take the shares of each question's rows, questions and rows in the order of the batch."""
        owners = [question for question, of_one in enumerate(shares) for _ in of_one]
        self._owners = torch.tensor(owners, device=device)
        self._logs = torch.tensor([share for of_one in shares for share in of_one], device=device).log()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return (B, V) mixed log-probabilities for (B, V) scores of the next token."""
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(dim=-1)
        shares = (wide + self._logs[:, None].to(wide.dtype)).exp()
        mixed = shares.new_zeros(int(self._owners[-1]) + 1, scores.shape[1]).index_add(0, self._owners, shares)
        return mixed.log()[self._owners]
