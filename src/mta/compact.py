"""Compact forms of a user's own part as kinds of jobs for the one training loop; the maths is in `lora.core`.

Example:
    >>> own = adapt_users(..., train=adapt, kind=kind_of(adapt), ...)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mta.config import TrainConfig
from mta.errors import ConfigError
from mta.lora.adapter import AdapterSum, Recipe, adapter_from_tensors
from mta.lora.core import CHANGE, CoreStack
from mta.lora.stacked import Shapes
from mta.training_plan import LORA, Kind, TrainJob


@dataclass(frozen=True, slots=True)
class Inside:
    """The kind of job that trains inside the frozen composition beneath it; see `lora.core`."""

    name: str
    """A form of `TrainConfig`."""

    def fingerprint(self, job: TrainJob) -> Any:
        """Nothing: the form is one of the job's settings."""
        return None

    def make(
        self, jobs: Sequence[TrainJob], shapes: Shapes, *, slots: int, like: Tensor, compute_dtype: torch.dtype
    ) -> InsideSlots:
        """Make empty slots; see `Kind.make`."""
        config = jobs[0].config
        terms = max(len(composition(job).terms) for job in jobs)
        return InsideSlots(
            shapes,
            slots=slots,
            frozen_rank=max(job.frozen.rank for job in jobs if job.frozen),
            terms=terms if self.name.startswith("coefficients") else None,
            rank=rank_on_top(config),
            scaling=config.scaling,
            like=like,
            compute_dtype=compute_dtype,
        )

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """Return the Frobenius norm of the changes inside together with that of the adapter on top."""
        on_top = {name: value for name, value in tensors.items() if not name.endswith(CHANGE)}
        squares = [float(value.double().square().sum()) for name, value in tensors.items() if name.endswith(CHANGE)]
        top = adapter_from_tensors(on_top, where=self.name).norm() if on_top else 0.0
        return math.sqrt(math.fsum(squares) + top**2)


class InsideSlots(CoreStack):
    """Slots that train inside a composition."""

    def start(self, slot: int, job: TrainJob) -> None:
        """Start a change of zeros inside the job's composition."""
        key = job.job_id if job.init_key is None else job.init_key
        self.fill(slot, composition(job), seed=job.config.seed, key=key)


def composition(job: TrainJob) -> AdapterSum:
    """Return what lies beneath a job.

    Raises:
        ConfigError: nothing does.
    """
    if job.frozen is None:
        raise ConfigError(
            f"{job.job_id!r} has nothing beneath to train inside of (form {job.config.form!r}); merge anchors, or "
            "train an adapter (form lora)"
        )
    return job.frozen.parts()


def rank_on_top(config: TrainConfig) -> int:
    """Return the rank of the adapter that is trained on top, 0 for none."""
    return config.rank if config.form.endswith("lora") else 0


def own_rank(config: TrainConfig, beneath: Recipe | None) -> int:
    """Return the rank of a user's own part as an adapter: what is trained inside a composition has that one's."""
    inside = beneath.rank if beneath and config.form != "lora" else 0
    return inside + rank_on_top(config)


def form_for(config: TrainConfig, beneath: Mapping[str, Recipe]) -> TrainConfig:
    """Return the settings of users' own parts: where nothing lies beneath them, those of an adapter."""
    return config if beneath else replace(config, form="lora")


def kind_of(config: TrainConfig) -> Kind:
    """Return the kind of job that trains a form."""
    if config.form == "lora":
        return LORA
    return Inside(config.form)
