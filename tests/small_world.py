"""People, settings and a finished bank small enough to train in a blink, for tests of the whole method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from helpers import random_adapter, tiny_base
from mta.bank import AnchorRecord, Bank, adapters_checksum, write_bank
from mta.bank_building import Encoders
from mta.base_model import BaseModel
from mta.config import QUERY_VALUE, AnchorConfig, BankConfig, EngineConfig, MatchConfig, PromptConfig, TrainConfig
from mta.encoders import HashingEncoder
from mta.progress import Step
from mta.records import HistoryItem, Query, User
from mta.tasks import get_task

OWN = get_task("own")
ENCODER = HashingEncoder()
ENCODERS = Encoders(ENCODER, ENCODER)
PROMPTS = PromptConfig(history_k=1, max_tokens=512, template="plain")
TRAIN = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=2, batch_size=2, target_modules=QUERY_VALUE)
ADAPT = replace(TRAIN, rank=1, alpha=2.0)
BANK = BankConfig(
    prompts=PROMPTS,
    anchors=AnchorConfig(bank_size=3, min_history=2, encoder="tiny-random"),
    train=TRAIN,
    match=MatchConfig(encoder="tiny-random", top_k=2),
    population_train=TRAIN,
)
ENGINE = EngineConfig(slots=2, tokens_per_batch=400)
TOPICS = ("garden", "engine", "violin", "harbour")


def person(user_id: str, *, items: int = 4, topic: int = 0, queries: int = 1) -> User:
    """Somebody who writes about one topic, in a way of her own."""
    word = TOPICS[topic % len(TOPICS)]
    history = tuple(
        HistoryItem(f"i{place}", {"input": f"{word} {word} {user_id} {place}", "output": f"{word[place % 5]}{place}"})
        for place in range(items)
    )
    asked = tuple(
        Query(f"{user_id}-q{place}", f"{word} asked of {user_id} number {place}", f"{word[place % 5]}!")
        for place in range(queries)
    )
    return User(user_id, history, asked)


def small_pool() -> list[User]:
    """Six people on three topics; the most active of each topic are p1, p3 and p5."""
    return [person(f"p{number}", items=3 + number, topic=number // 2) for number in range(6)]


def small_targets() -> list[User]:
    return [person("ann", items=3, topic=0, queries=2), person("bob", items=5, topic=1), person("cy", items=4, topic=2)]


@dataclass
class Heard:
    """A `progress` that remembers what it was told."""

    stages: list[str] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Step]:
        self.stages.append(stage)
        yield lambda done, total: self.steps.append((stage, done, total))

    def first_step(self, stage: str) -> int:
        return next(done for name, done, _ in self.steps if name == stage)

    def trained(self) -> set[str]:
        """Stages in which an update was made."""
        return {name for name, _, _ in self.steps if name in ("bank training", "population training", "adaptation")}


def invented_bank(
    folder: Path,
    *,
    base: BaseModel | None = None,
    anchors: int = 3,
    seed: int = 0,
    shared_a: bool = False,
    population: bool = False,
    size: float = 0.1,
    config: BankConfig = BANK,
) -> Bank:
    """Write a bank of random adapters, without training, and return what was written."""
    base = base or tiny_base(torch.float32)
    names = [f"anchor/{number}" for number in range(anchors)]
    adapters = {
        name: random_adapter(base, QUERY_VALUE, seed=seed + place, rank=2, size=size, shared_a=shared_a)
        for place, name in enumerate(names)
    }
    beneath = random_adapter(base, QUERY_VALUE, seed=seed + 77, rank=3, size=size) if population else None
    bank = Bank(
        folder=folder,
        task=OWN,
        config=config,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        anchors=tuple(anchor_record(name, place) for place, name in enumerate(names)),
        adapters=adapters,
        vectors=torch.nn.functional.normalize(
            torch.randn(anchors, ENCODER.dimensions, generator=torch.Generator().manual_seed(seed)), dim=-1
        ),
        matching_encoder=ENCODER.fingerprint,
        population=beneath,
        checksum=adapters_checksum(adapters, beneath),
        asked=anchors + 1,
        train_seconds=1.5,
    )
    write_bank(bank, build_fingerprint=f"invented {seed}", dropped=())
    return bank


def anchor_record(name: str, place: int) -> AnchorRecord:
    return AnchorRecord(
        user_id=name,
        cluster=place,
        history_size=10 + place,
        examples=9 + place,
        source="history items",
        data_fingerprint=f"data {place}",
        updates=20,
        tokens=1000 + place,
        last_loss=1.25,
        held_out_losses=(2.0, 1.5),
    )


def same_bank(one: Bank, two: Bank) -> bool:
    """Compare everything two banks hold, tensors by exact value."""
    return _content(one) == _content(two) and torch.equal(one.vectors, two.vectors)


def _content(bank: Bank) -> tuple[Any, ...]:
    return (
        bank.folder,
        bank.task,
        bank.config,
        bank.base_name,
        bank.base_fingerprint,
        bank.anchors,
        [(name, adapter.fingerprint()) for name, adapter in bank.adapters.items()],
        bank.matching_encoder,
        bank.population.fingerprint() if bank.population else None,
        bank.checksum,
        bank.asked,
    )


def flip_bit(path: Path, *, place: int, bit: int = 0) -> None:
    """Damage one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))
