"""AdamW for many independent adapters at once: one row of a matrix per user, each on its own clock.

A slot's moments, step count, learning rate, weight decay and gradient clipping are its own. A slot that has no
update this time is not touched at all: with a zero gradient Adam would still move by momentum and weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta.config import TrainConfig
from mta.transfer import send

CPU_PIECE, GPU_PIECE = 1 << 18, 1 << 26
"""Values that are updated at once."""


@dataclass(frozen=True, slots=True)
class SlotUpdate:
    """One slot's next update."""

    slot: int
    lr: float
    config: TrainConfig


def adamw_update(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    t: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    weight_decay: Tensor,
) -> None:
    """Update `s` rows in place by one AdamW step.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, algorithm 2 (as torch.optim.AdamW)

    Args:
        p: (s, P) parameters, changed in place.
        g: (s, P) gradients.
        m: (s, P) first moments, changed in place.
        v: (s, P) second moments, changed in place.
        t: (s, 1) number of this step for each row, from 1; the other settings are (s, 1) too.
        lr: learning rates.
        beta1: decays of the first moment.
        beta2: decays of the second moment.
        eps: added to the denominator.
        weight_decay: decoupled weight decays.
    """
    p.mul_(1 - lr * weight_decay)
    m.add_((g - m) * (1 - beta1))
    v.mul_(beta2).add_(g.square() * (1 - beta2))
    denominator = (v.sqrt() / (1 - beta2**t).sqrt()).add_(eps)
    p.sub_(m * (lr / (1 - beta1**t)) / denominator)


def clip_rows(gradients: Tensor, max_norm: Tensor) -> Tensor:
    """Scale each row of (s, P) gradients in place to at most its norm (0 = no limit); return the norms before, (s,)."""
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1)
    factor = torch.where(max_norm > 0, (max_norm / (norms + 1e-6)).clamp(max=1.0), torch.ones_like(norms))
    gradients.mul_(factor[:, None])
    return norms


class SlotAdamW:
    """Moments and step counts of S slots over the rows of a (S, P) parameter matrix."""

    def __init__(self, parameters: Tensor, gradients: Tensor) -> None:
        self._parameters, self._gradients = parameters, gradients
        self.first_moments = torch.zeros_like(parameters)
        self.second_moments = torch.zeros_like(parameters)
        self.steps = torch.zeros(len(parameters), dtype=torch.int64)
        """(S,) updates each slot has made; kept on the CPU."""

    def reset(self, slot: int) -> None:
        """Forget everything about a slot, so that its next user starts clean."""
        self.first_moments[slot].zero_()
        self.second_moments[slot].zero_()
        self.steps[slot] = 0

    @torch.no_grad()
    def step(self, updates: Sequence[SlotUpdate]) -> dict[int, float]:
        """Clip and apply the accumulated gradients of the given slots, then zero them.

        Slots that are not named keep everything bit for bit. A slot whose gradient norm is not finite is left as it
        was (its gradient is still zeroed).

        Returns:
            slot -> gradient norm before clipping; nan or inf marks a slot that was not updated.
        """
        norms: dict[int, float] = {}
        for run in _contiguous_runs(sorted(updates, key=lambda update: update.slot)):
            rows = slice(run[0].slot, run[-1].slot + 1)
            found = clip_rows(self._gradients[rows], self._column([u.config.clip_norm for u in run])[:, 0])
            norms |= {update.slot: float(norm) for update, norm in zip(run, found.tolist(), strict=True)}
            good = [update for update in run if math.isfinite(norms[update.slot])]
            for part in _contiguous_runs(good):
                self._apply(part)
            self._gradients[rows].zero_()
        return norms

    def _apply(self, run: Sequence[SlotUpdate]) -> None:
        rows = slice(run[0].slot, run[-1].slot + 1)
        self.steps[rows] += 1
        configs = [update.config for update in run]
        settings = {
            "t": self._column(self.steps[rows].tolist()),
            "lr": self._column([update.lr for update in run]),
            "beta1": self._column([c.beta1 for c in configs]),
            "beta2": self._column([c.beta2 for c in configs]),
            "eps": self._column([c.eps for c in configs]),
            "weight_decay": self._column([c.weight_decay for c in configs]),
        }
        matrices = (self._parameters, self._gradients, self.first_moments, self.second_moments)
        for columns in _pieces(self._parameters.shape[1], rows=len(run), device=self._parameters.device):
            adamw_update(*(matrix[rows, columns] for matrix in matrices), **settings)

    def _column(self, values: Sequence[float]) -> Tensor:
        like = self._parameters
        return send(torch.tensor(values, dtype=like.dtype), like.device)[:, None]


def _pieces(width: int, *, rows: int, device: torch.device) -> Iterator[slice]:
    """Cut columns so that what a step of AdamW makes on the way stays small, on a CPU in its cache."""
    size = max(1, (CPU_PIECE if device.type == "cpu" else GPU_PIECE) // rows)
    for start in range(0, width, size):
        yield slice(start, min(start + size, width))


def _contiguous_runs(updates: Sequence[SlotUpdate]) -> Iterator[list[SlotUpdate]]:
    """Split updates sorted by slot into runs of neighbouring slots, so that a run is one slice of rows."""
    run: list[SlotUpdate] = []
    for update in updates:
        if run and update.slot != run[-1].slot + 1:
            yield run
            run = []
        run.append(update)
    if run:
        yield run
