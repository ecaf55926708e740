"""What the tests of killed runs do in a process of their own; imported there before the process is forked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from mta.bank import Bank, load_bank
from mta.bank_building import build_bank
from mta.base_model import load_base_model
from mta.config import EngineConfig
from mta.personalize import PersonalizedUsers, Resources, personalize_users
from mta.progress import Step
from mta.records import User
from small_world import ADAPT, BANK, ENCODER, ENCODERS, OWN, PROMPTS, TRAIN, person, small_pool

ENGINE = EngineConfig(slots=2, tokens_per_batch=300, checkpoint_every_s=0.0)
BANK_CONFIG = replace(BANK, population_beneath=True, train=replace(TRAIN, epochs=6, held_out_share=0.3, patience=9))
ADAPT_CONFIG = replace(ADAPT, epochs=8, dropout=0.2)


class Steps:
    """A `progress` that appends a line to a file at every step, and waits a little so that a kill can come anywhere."""

    def __init__(self, path: Path | None, *, pause_s: float = 0.0) -> None:
        self.path, self.pause_s = path, pause_s
        self.seen: list[tuple[str, int]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Step]:
        def step(done: int, total: int) -> None:
            self.seen.append((stage, done))
            if self.path is not None:
                with self.path.open("a") as stream:
                    stream.write(f"{stage} {done}/{total}\n")
            time.sleep(self.pause_s)

        yield step

    def first(self, stage: str) -> int | None:
        return next((done for name, done in self.seen if name == stage), None)

    def count(self, *stages: str) -> int:
        return sum(name in stages for name, _ in self.seen)


def targets() -> list[User]:
    return [person(f"user/{number}", items=3 + number, topic=number) for number in range(5)]


def build(folder: Path, steps: Steps) -> Bank:
    base = load_base_model("tiny-random", device="cpu")
    return build_bank(
        small_pool(), OWN, base, folder / "bank", config=BANK_CONFIG, encoders=ENCODERS, engine=ENGINE, progress=steps
    )


def adapt(folder: Path, bank: Path, steps: Steps, *, users: Sequence[User] | None = None) -> PersonalizedUsers:
    base = load_base_model("tiny-random", device="cpu")
    resources = Resources(
        base=base,
        task=OWN,
        prompts=PROMPTS,
        adapt=ADAPT_CONFIG,
        folder=folder / "adapters",
        bank=load_bank(bank, base=base),
        encoder=ENCODER,
        engine=ENGINE,
        progress=steps,
    )
    return personalize_users(users or targets(), resources)


def work(kind: str, folder: str, bank: str, pause_s: float) -> None:
    """Run one stage to its end, unless somebody kills this process before."""
    torch.set_num_threads(1)
    steps = Steps(Path(folder) / "steps.txt", pause_s=pause_s)
    if kind == "bank":
        build(Path(folder), steps)
    else:
        adapt(Path(folder), Path(bank), steps)
    os._exit(7)  # nobody did
