"""The number of threads changes rounding and nothing else: training on one of them, again on one, and on two.

The tolerance, also stated in docs/reliability.md: each trained matrix, and a job's losses, change by less than 1e-4 of
their size (Frobenius norm) in float32 and 1e-11 in float64. Measured were 8e-6 and, by processor, 5e-14 to 1.2e-12.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import random_rows, tiny_base
from mta.config import ALL_LINEAR, EngineConfig, TrainConfig
from mta.tensor_files import load_tensors, save_tensors
from mta.training import train
from mta.training_plan import TrainJob

TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
CALLS = {"one": 1, "one again": 1, "two": 2}
"""call -> threads"""
CONFIG = TrainConfig(rank=8, alpha=16.0, lr=2e-3, epochs=2, batch_size=4, target_modules=ALL_LINEAR)
ENGINE = EngineConfig(slots=2, tokens_per_batch=2048)


def train_all(folder: Path) -> None:
    """Train with each number of threads in turn; matrices of 256 to 512 by up to 2048 tokens are split over them."""
    for dtype in TOLERANCE:
        base = tiny_base(getattr(torch, dtype), width=256)
        jobs = [TrainJob(f"user {number}", random_rows(number, 8, longest=200), CONFIG) for number in range(2)]
        for call, threads in CALLS.items():
            torch.set_num_threads(threads)
            assert torch.get_num_threads() == threads
            found = {}
            for done in train(base, jobs, engine=ENGINE):
                found |= {f"{done.job_id} {name}": tensor for name, tensor in done.adapter.tensors()}
                found[f"{done.job_id} losses"] = torch.tensor(done.losses, dtype=torch.float64)
            save_tensors(folder / f"{dtype} {call}.safetensors", found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a process of its own has trained; its threads sleep while they wait, as others may need the processors."""
    folder = tmp_path_factory.mktemp("threads")
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def trained(folder: Path, dtype: str, call: str) -> dict[str, torch.Tensor]:
    tensors, _ = load_tensors(folder / f"{dtype} {call}.safetensors")
    assert len(tensors) == 2 * (1 + 2 * 7 * 2), "of two users: losses, and A and B of seven modules in two layers"
    return tensors


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_same_threads_give_the_same_bits(folder: Path, dtype: str) -> None:
    one, again = (trained(folder, dtype, call) for call in ("one", "one again"))
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_other_threads_change_rounding_only(folder: Path, dtype: str) -> None:
    one, two = (trained(folder, dtype, call) for call in ("one", "two"))
    changes = {name: float((two[name] - one[name]).norm() / one[name].norm()) for name in one}
    assert max(changes.values()) < TOLERANCE[dtype], max(changes, key=lambda name: changes[name])


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
