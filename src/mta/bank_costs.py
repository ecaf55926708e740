"""What training a planned bank would be and take: anchors, examples, updates, disk and memory.

Example:
    >>> shape = load_base_shape("smollm2-135m", dtype="bfloat16")
    >>> bank_costs(shape, plan, engine=EngineConfig()).memory.total / 2**30
    2.4
"""

from __future__ import annotations

from dataclasses import dataclass

from mta.bank_plan import BankPlan
from mta.base_model import BaseModel
from mta.config import EngineConfig, TrainConfig
from mta.lora.adapter import AdapterSum, Recipe
from mta.memory import BYTES_PER_VALUE, TrainingMemory, size_text, training_memory
from mta.memory_at_hand import free_bytes, rss_bytes


@dataclass(frozen=True, slots=True)
class BankCosts:
    """What the training of a bank would be and take, that of a population adapter beneath its anchors included."""

    asked: int
    """Anchors asked for."""
    anchors: int
    """Anchors that would be trained."""
    examples: int
    updates: int
    """Of all adapters together, unless some stop early."""
    longest_row: int
    """Tokens of the longest training example."""
    file_bytes: int
    """Of the adapters on disk."""
    device: str
    memory: TrainingMemory
    """At the peak: of the anchors or of the population adapter, which are trained one after the other."""
    process_bytes: int
    """What the process holds besides, now: libraries and encoders."""
    free_bytes: int
    """What the device has left for all this now."""

    def rows(self) -> list[tuple[str, str]]:
        """Return the costs as texts, for a table."""
        memory = self.memory
        return [
            ("anchors asked / trained", f"{self.asked} / {self.anchors}"),
            ("training examples", f"{self.examples:,}"),
            ("updates", f"{self.updates:,}"),
            ("longest example", f"{self.longest_row:,} tokens"),
            ("adapters on disk", size_text(self.file_bytes)),
            (f"memory of the {self.device} at the peak", size_text(memory.total)),
            ("  base model", size_text(memory.weights)),
            ("  adapters in training", size_text(memory.slots)),
            (f"  one pass over {memory.tokens:,} tokens", size_text(memory.largest_pass)),
            ("  unused between all these, about", size_text(memory.holes)),
            (f"free memory of the {self.device} now", size_text(self.free_bytes)),
            ("libraries and encoders, in main memory", size_text(self.process_bytes)),
        ]


def bank_costs(shape: BaseModel, plan: BankPlan, *, engine: EngineConfig) -> BankCosts:
    """Return what training a planned bank would be and take.

    Args:
        shape: the base model without values, from `load_base_shape`.
        plan: the bank's anchors.
        engine: packing.

    Raises:
        DataError: no anchor has a training example.
    """
    anchors = plan.jobs(beneath=_planned_beneath(plan))
    trainings = [[plan.population_job(shape.tokens)], anchors] if plan.config.population_beneath else [anchors]
    jobs = [job for training in trainings for job in training]
    return BankCosts(
        asked=plan.asked,
        anchors=len(anchors),
        examples=sum(len(job.rows) for job in jobs),
        updates=sum(job.total for job in jobs),
        longest_row=max(len(row) for job in jobs for row in job.rows),
        file_bytes=sum(_adapter_bytes(shape, job.config) for job in jobs),
        device=shape.device.type,
        memory=max((training_memory(shape, one, engine=engine) for one in trainings), key=lambda one: one.total),
        process_bytes=rss_bytes(),
        free_bytes=free_bytes(shape.device),
    )


def _planned_beneath(plan: BankPlan) -> Recipe | None:
    """Return what will lie beneath the anchors, of which only the rank is known."""
    if not plan.config.population_beneath:
        return None
    return Recipe("planned", plan.config.population_train.rank, lambda: AdapterSum(()))


def _adapter_bytes(shape: BaseModel, train: TrainConfig) -> int:
    shapes = shape.shapes(train.target_modules).values()
    return BYTES_PER_VALUE * train.rank * sum(d_out + d_in for d_out, d_in in shapes)
