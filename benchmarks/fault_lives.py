"""Whole runs in processes of their own, and what tells that nothing of them was lost or changed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from mta.config import QUERY_VALUE, AnchorConfig, BankConfig, EngineConfig, MatchConfig, PromptConfig, TrainConfig
from mta.data.personas import make_pool_and_targets
from mta.errors import MtaError
from mta.evaluation.run import run
from mta.evaluation.run_config import RunConfig
from mta.files import SEAL, read_json, read_jsonl, safe_name
from mta.progress import Step
from mta.tensor_files import load_tensors, tensors_checksum
from mta.training_store import CHECKPOINT, PLAN

TRAIN = TrainConfig(rank=2, alpha=4.0, lr=1e-2, epochs=3, batch_size=2, target_modules=QUERY_VALUE)
CONFIG = RunConfig(
    task_id="lamp-3",
    base="tiny-random",
    device="cpu",
    methods=("base", "population", "merged-only", "mta"),
    bank=BankConfig(
        prompts=PromptConfig(history_k=1, history_words=10, template="plain", max_tokens=700),
        anchors=AnchorConfig(bank_size=3, min_history=3, encoder="tiny-random"),
        train=TRAIN,
        match=MatchConfig(encoder="tiny-random"),
        population_train=TRAIN,
    ),
    adapt=replace(TRAIN, rank=1, alpha=2.0),
    engine=EngineConfig(slots=2, tokens_per_batch=1200, predict_tokens_per_batch=3000, checkpoint_every_s=0.0),
)
LONGEST_LIFE_S = 120.0
REFUSED = 2
"""Exit code of a child that was stopped by one of the package's own errors, which it tells last."""
ROUNDING = 1e-5
"""How far values of adapters trained again in other company may be from those of an undisturbed run."""
NUMBERS = 1e-3
"""How far what follows from them may be: likelihoods, distances, scores."""


class Violation(SystemExit):
    """Something was lost or damaged."""

    def __init__(self, what: str) -> None:
        super().__init__(f"VIOLATION: {what}")


def people() -> tuple[list[Any], list[Any]]:
    """Return pool and targets."""
    pool, targets = make_pool_and_targets(
        "lamp-3", pool=6, targets=4, pool_history=(5, 7), target_history=(4, 5), target_queries=2, seed=0
    )
    return list(pool.users), list(targets.users)


# lives ------------------------------------------------------------------------------------------------------------


def live(folder: str, stages: Connection) -> None:
    """Run to the end, unless somebody kills this process before; tells each stage as it begins."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    @contextmanager
    def progress(stage: str) -> Iterator[Step]:
        stages.send(stage)
        yield lambda done, total: None

    try:
        run(*people(), CONFIG, Path(folder), progress=progress)
    except MtaError as error:
        stages.send(f"{type(error).__name__}: {error}")
        os._exit(REFUSED)
    os._exit(0)


def start(processes: ForkServerContext, folder: Path) -> tuple[Any, Connection]:
    """Start a life; returns the process and where it tells its stages."""
    receive, send = processes.Pipe(duplex=False)
    child = processes.Process(target=live, args=(str(folder), send))
    child.start()
    send.close()
    return child, receive


def last_told(stages: Connection) -> str:
    """Return what a dead process has told last: the stage it was in, or the error that stopped it."""
    told = "loading"
    with contextlib.suppress(EOFError, OSError):
        while True:
            told = stages.recv()
    return told


def result_of(folder: Path) -> dict[str, Any]:
    """Return everything of a run that must not depend on what happened on the way."""
    adapters = sorted(folder.glob("adapters/*/*.safetensors"))
    return {
        "bank": read_json(folder / "bank" / "bank.json")["checksum"],
        "matches": read_json(folder / "matches.json"),
        "adapters": {str(path.relative_to(folder)): contents(path) for path in adapters},
        "records": {path.name: read_json(path) for path in sorted(folder.glob("adapters/*.json"))},
        "predictions": (folder / "predictions.jsonl").read_bytes(),
        "scores": {name: one["metrics"] for name, one in read_json(folder / "scores.json")["methods"].items()},
    }


def contents(path: Path) -> tuple[str, dict[str, str]]:
    """Return the exact values and notes of an adapter; the order in which its file lists the notes is open."""
    tensors, notes = load_tensors(path)
    return tensors_checksum(tensors), notes


def require_same(found: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """Refuse results that differ from an undisturbed run's."""
    for part, value in wanted.items():
        if found[part] != value:
            raise Violation(f"{what}: {part} differ from those of an undisturbed run")


def require_close(folder: Path, sound: Path, what: str) -> None:
    """Refuse results that differ from an undisturbed run's by more than rounding.

    An adapter that is trained again without those it was trained with goes through other packs, whose sums round
    otherwise.
    """
    for name in sorted({path.relative_to(place) for place in (folder, sound) for path in finished_tensors(place)}):
        if not tensors_are_close(folder / name, sound / name):
            raise Violation(f"{what}: {name} differs from an undisturbed run's")
    found, wanted = values_of(folder), values_of(sound)
    for part in wanted:
        if not is_close(found[part], wanted[part]):
            raise Violation(f"{what}: {part} differ from those of an undisturbed run")


def finished_tensors(folder: Path) -> list[Path]:
    """List the bank's tensors and the adapters of a run."""
    return [*folder.glob("bank/*.safetensors"), *folder.glob("adapters/*/*.safetensors")]


def tensors_are_close(one: Path, other: Path) -> bool:
    """Say whether two files are there and hold the same tensors but for rounding."""
    if not (one.exists() and other.exists()):
        return False
    here, there = load_tensors(one)[0], load_tensors(other)[0]
    return here.keys() == there.keys() and all(
        here[key].shape == there[key].shape and torch.allclose(here[key], there[key], rtol=0, atol=ROUNDING)
        for key in there
    )


def values_of(folder: Path) -> dict[str, Any]:
    """Return what a run has written besides tensors, without what stands for their exact values."""
    result = result_of(folder)
    records = result["records"]
    for name, record in records.items():
        kept = {key: value for key, value in record.items() if key not in ("bank", SEAL)}
        records[name] = {**kept, "users": list(record["users"])}
    answers = [row for _, row in read_jsonl(folder / "predictions.jsonl")]
    return {"matches": result["matches"], "records": records, "answers": answers, "scores": result["scores"]}


def is_close(found: Any, wanted: Any) -> bool:
    """Say whether two JSON values are equal, numbers with a point but for what rounding does to them."""
    if isinstance(wanted, float) and isinstance(found, float):
        return abs(found - wanted) <= NUMBERS
    if isinstance(wanted, dict) and isinstance(found, dict):
        return found.keys() == wanted.keys() and all(is_close(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(is_close, found, wanted))
    return bool(found == wanted)


def require_whole(folder: Path, what: str) -> None:
    """Refuse a folder that holds a half-written file under a final name."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            if path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".jsonl":
                read_jsonl(path)
            elif path.suffix in (".safetensors", ".checkpoint"):
                load_tensors(path)
            elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
                raise Violation(f"{what}: {path} ends in the middle")
        except MtaError as error:
            raise Violation(f"{what}: {error}") from error


@dataclass(frozen=True)
class Kept:
    """A finished file as a life left it."""

    data: bytes
    stamp: tuple[int, int]
    """Its number and time in the file system; another one is another file."""
    settled: bool
    """No later life has a reason to write it again."""


class Finished:
    """The finished files of a run, which no later life may change or lose, or make a second time.

    Two kinds are written again with the same content, rightly. An adapter that was finished after the last checkpoint
    is stored again by the life that goes on from there. A file of answers is written by every call that has read it;
    the seconds that answering took are in it, so answers given a second time would be other bytes.
    """

    def __init__(self) -> None:
        self.seen: dict[Path, Kept] = {}
        self.stored_again = 0

    def check(self, folder: Path) -> None:
        """Compare with what was there before, and remember what is there now."""
        now = {path: Kept(path.read_bytes(), stamp_of(path), is_settled(path)) for path in finished_files(folder)}
        for path, before in self.seen.items():
            if path not in now:
                if path.is_relative_to(folder / "bank" / "work") and (folder / "bank" / "bank.json").exists():
                    continue  # its adapter is in the bank
                raise Violation(f"{path} was finished and is gone")
            if now[path].data != before.data:
                raise Violation(f"{path} was finished and is changed")
            if now[path].stamp != before.stamp:
                if before.settled:
                    raise Violation(f"{path} was finished and has been made again")
                self.stored_again += path.suffix == ".safetensors"
        self.seen = now


def finished_files(folder: Path) -> list[Path]:
    """List what a run has finished: adapters of anchors and users, the bank if it is whole, answers."""
    bank = folder / "bank"
    found = [*bank.glob("work/*/*.safetensors"), *folder.glob("adapters/*/*.safetensors")]
    found += [path for path in bank.glob("*.*") if (bank / "bank.json").exists() and not path.name.startswith(".")]
    return [*found, *folder.glob("predictions/*.json")]


def stamp_of(path: Path) -> tuple[int, int]:
    """Return what tells a file from one that was made in its place."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def is_settled(path: Path) -> bool:
    """Say whether a finished file needs no more writing: an adapter once a checkpoint after it says so."""
    if path.parent.name == "predictions":
        return False
    plan, checkpoint = path.parent / PLAN, path.parent / CHECKPOINT
    jobs = read_json(plan)["jobs"] if plan.exists() else []
    done = json.loads(load_tensors(checkpoint)[1]["state"])["finished"] if checkpoint.exists() else []
    return path.stem not in {safe_name(job) for job in jobs if job not in done}
