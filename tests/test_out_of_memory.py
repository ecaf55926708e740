"""Where a GPU's memory does not suffice: smaller pieces with the same result, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from helpers import random_adapter, random_rows, tiny_base
from mta import generation, training
from mta.base_model import BaseModel
from mta.config import ALL_LINEAR, EngineConfig, TrainConfig
from mta.errors import ModelError
from mta.forward import answer_nll
from mta.generation import Request, answer_and_score, generate, score_answers
from mta.memory_at_hand import halve_until_it_fits
from mta.packing import Pack
from mta.training import Trained, train
from mta.training_plan import TrainJob


def small_device(most: int, *, after: Callable[[torch.Tensor], None] = lambda nll: None) -> Any:
    """`answer_nll` on a device that holds so many tokens; `after` comes first where it does not."""

    def limited(base: BaseModel, pack: Pack) -> torch.Tensor:
        nll = answer_nll(base, pack)
        if sum(pack.lengths) > most:
            after(nll)
            raise torch.OutOfMemoryError
        return nll

    return limited


def jobs() -> list[TrainJob]:
    config = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=2, batch_size=3, target_modules=ALL_LINEAR)
    return [
        TrainJob(f"user {n}", random_rows(n, 6), config, held_out=random_rows(n + 9, 3) if n else ()) for n in range(3)
    ]


def trained(base: BaseModel, **engine: int) -> list[Trained]:
    return list(train(base, jobs(), engine=EngineConfig(slots=2, **engine)))


def test_training_goes_on_in_smaller_passes_and_nothing_of_the_broken_one_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_base()
    wanted = trained(base)
    most = max(len(row) for job in jobs() for row in job.rows) + 20

    def break_off(nll: torch.Tensor) -> None:
        if nll.requires_grad:
            nll.sum().backward()  # gradients of the whole pack, as if memory ran out at the very end

    monkeypatch.setattr(training, "answer_nll", small_device(most, after=break_off))
    found = trained(base)
    assert "going on with at most" in caplog.text
    for one, two in zip(wanted, found, strict=True):
        assert one.held_out_losses == pytest.approx(two.held_out_losses, abs=1e-12)
        for name, tensor in one.tensors.items():
            assert float((tensor - two.tensors[name]).abs().max()) < 1e-12


def test_a_row_that_does_not_fit_is_an_error_with_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = max(len(row) for job in jobs() for row in job.rows)
    monkeypatch.setattr(training, "answer_nll", small_device(3))
    with pytest.raises(ModelError, match=r"over one row of \d+ tokens; take shorter prompts \(--max-tokens\)"):
        trained(tiny_base(), tokens_per_batch=2 * longest)


def test_answers_are_the_same_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(torch.float32)
    requests = [Request(row, random_adapter(base, ALL_LINEAR, seed=k)) for k, row in enumerate(random_rows(3, 7))]
    engine = EngineConfig()
    candidates = [[row.row.answer] for row in requests]

    def everything() -> tuple[list[str], list[float], list[str]]:
        both = answer_and_score(base, requests, candidates, max_new_tokens=4, engine=engine)
        texts = generate(base, requests, max_new_tokens=4, engine=engine)
        nlls = score_answers(base, requests, engine=engine)
        return texts, [*nlls, *(float(one.scores[0]) for one in both)], [one.text for one in both]

    wanted = everything()
    for name in ("prefill", "answer_nll"):
        real = getattr(generation, name)

        def limited(base: BaseModel, batch: Any, real: Any = real, **options: Any) -> Any:
            if (batch.input_ids.shape[0] if batch.input_ids.shape[0] > 1 else len(getattr(batch, "lengths", "x"))) > 2:
                raise torch.OutOfMemoryError
            return real(base, batch, **options)

        monkeypatch.setattr(generation, name, limited)
    found = everything()
    assert (found[0], found[2]) == (wanted[0], wanted[2])
    assert found[1] == pytest.approx(wanted[1], abs=1e-4)


def test_halves_keep_the_order_and_one_that_does_not_fit_is_named() -> None:
    seen: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        if len(items) > 3:
            raise torch.OutOfMemoryError
        seen.append(len(items))
        return [10 * item for item in items]

    assert halve_until_it_fits(work, list(range(10)), what="a number") == [10 * n for n in range(10)]
    assert seen == [2, 3, 2, 3]
    assert halve_until_it_fits(work, [], what="a number") == []

    def never(items: Sequence[int]) -> list[int]:
        raise torch.OutOfMemoryError

    with pytest.raises(ModelError, match="does not suffice for a number; take shorter prompts"):
        halve_until_it_fits(never, [1, 2], what="a number")
