"""Bank training and adaptation killed with SIGKILL at any moment: the same call goes on and ends exactly the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from killed_child import Steps, adapt, build, targets, work
from mta.bank import load_bank
from mta.personalize import PersonalizedUsers
from mta.training_store import CHECKPOINT, PLAN
from small_world import same_bank

LONGEST_WAIT_S = 120.0
PAUSE_S = 0.004


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Starts processes that have imported everything before; each is a real one, with a pid of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        forkserver.ensure_running()
    return context


def start_and_kill(
    processes: ForkServerContext, kind: str, folder: Path, *, after: int, wait_s: float = 0.0, bank: Path = Path()
) -> None:
    """Start a stage, wait until it has made `after` more steps and `wait_s` more, and kill it."""
    folder.mkdir(exist_ok=True)
    before = steps_of(folder)
    child = processes.Process(target=work, args=(kind, str(folder), str(bank), PAUSE_S))
    child.start()
    deadline = time.monotonic() + LONGEST_WAIT_S
    while steps_of(folder) < before + after and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(wait_s)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(LONGEST_WAIT_S)
    assert child.exitcode == -signal.SIGKILL, "it should be killed in the middle, not end by itself"
    assert steps_of(folder) >= before + after


def steps_of(folder: Path) -> int:
    path = folder / "steps.txt"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def prints(people: PersonalizedUsers) -> dict[str, tuple[str, int, int]]:
    """What was trained for each user, by exact value."""
    return {
        name: (person.adapter.make().fingerprint(), person.updates, person.adapter_bytes)
        for name, person in people.users.items()
        if person.adapter
    }


TRAINING = ("population training", "bank training", "adaptation")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, Steps, Steps, dict]:
    """A folder with a bank and adapters that nobody interrupted, and the steps they took."""
    folder = tmp_path_factory.mktemp("unbroken")
    bank_steps, adapt_steps = Steps(None), Steps(None)
    build(folder, bank_steps)
    people = prints(adapt(folder, folder / "bank", adapt_steps))
    assert len(people) == 5
    return folder, bank_steps, adapt_steps, people


def finish_bank(folder: Path, unbroken) -> Steps:
    steps = Steps(None)
    bank = build(folder, steps)
    wanted = load_bank(unbroken[0] / "bank")
    assert bank.checksum == wanted.checksum
    assert [anchor.held_out_losses for anchor in bank.anchors] == [anchor.held_out_losses for anchor in wanted.anchors]
    assert bank.anchors == wanted.anchors
    assert same_bank(bank, load_bank(folder / "bank"))
    assert not (folder / "bank" / "work").exists()
    return steps


# bank -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [2, 9, 17])
def test_a_killed_bank_goes_on_and_ends_the_same(processes, tmp_path, unbroken, after: int) -> None:
    start_and_kill(processes, "bank", tmp_path / "run", after=after + 1)
    steps = finish_bank(tmp_path / "run", unbroken)
    left, whole = steps.count(*TRAINING), unbroken[1].count(*TRAINING)
    assert left <= whole - after + 1, "what the checkpoint holds is not done again"


def test_a_bank_killed_again_and_again_ends_the_same(processes, tmp_path, unbroken) -> None:
    """Each life makes a few steps: together they are no more than one unbroken run and a step for each death."""
    folder, deaths = tmp_path / "run", 4
    for death in range(deaths):
        start_and_kill(processes, "bank", folder, after=5, wait_s=0.003 * death)
    finish_bank(folder, unbroken)
    trained = [line for line in (folder / "steps.txt").read_text().splitlines() if not line.startswith("user vectors")]
    assert len(trained) >= 5 * deaths - deaths


# adaptation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [3, 20])
def test_killed_adaptation_goes_on_and_ends_the_same(processes, tmp_path, unbroken, after: int) -> None:
    bank = unbroken[0] / "bank"
    start_and_kill(processes, "adapt", tmp_path / "run", after=after + 1, bank=bank)
    kept = tmp_path / "run" / "adapters" / "mta"
    finished = {path.name: path.read_bytes() for path in kept.glob("*.safetensors")}
    assert (kept / PLAN).exists()
    assert (kept / CHECKPOINT).exists()
    steps = Steps(None)
    people = adapt(tmp_path / "run", bank, steps)
    assert prints(people) == unbroken[3]
    assert steps.count("adaptation") <= unbroken[2].count("adaptation") - after + 1
    assert (steps.first("adaptation") or 0) > after, "it goes on from the checkpoint, not from the start"
    for name, data in finished.items():
        assert (kept / name).read_bytes() == data, "who was finished stays finished"
    assert len(list(kept.glob("*.safetensors"))) == len(targets())


def test_a_killed_run_with_a_damaged_checkpoint_starts_over_and_ends_the_same(
    processes, tmp_path, unbroken, caplog
) -> None:
    bank = unbroken[0] / "bank"
    start_and_kill(processes, "adapt", tmp_path / "run", after=10, bank=bank)
    checkpoint = tmp_path / "run" / "adapters" / "mta" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 3])
    people = adapt(tmp_path / "run", bank, Steps(None))
    assert "ignoring the checkpoint" in caplog.text
    assert prints(people) == unbroken[3]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_many_random_deaths(processes, tmp_path, unbroken, seed: int) -> None:
    """Deaths at random moments, within steps, writes and renames, until somebody gets through."""
    generator = random.Random(seed)
    folder, bank = tmp_path / "run", unbroken[0] / "bank"
    for _ in range(6):
        start_and_kill(processes, "bank", folder, after=generator.randint(1, 3), wait_s=generator.random() * 0.02)
    finish_bank(folder, unbroken)
    for _ in range(8):
        after, wait_s = generator.randint(1, 3), generator.random() * 0.02
        start_and_kill(processes, "adapt", folder, after=after, wait_s=wait_s, bank=bank)
    assert prints(adapt(folder, folder / "bank", Steps(None))) == unbroken[3]
