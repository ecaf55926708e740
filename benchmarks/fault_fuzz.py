"""Mutated data files: readers may raise the package's own errors and nothing else."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_lives import Violation
from mta.data.read import read_users
from mta.errors import MtaError

RECORDS: dict[str, list[dict[str, Any]]] = {
    "lamp": [
        {"id": "a-1", "user_id": "a", "input": "q: one", "profile": [{"id": "p", "text": "x", "score": 3, "date": 1}]},
        {"id": 2, "input": "q: two", "profile": []},
    ],
    "processed": [{"user_id": 1, "profile": [{"text": "x"}], "query": [{"id": "1", "input": "i", "gold": "g"}]}],
    "jsonl": [{"user_id": "a", "input": "x", "output": "y", "time": "2020"}, {"user_id": "a", "input": "z"}],
}
HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1.5, 10**400, float("nan"), "", " ", "\ud800", [], {}, [[]], {"id": None}, [{"id": 1}]),
)


def mutate(value: Any, draw: random.Random) -> Any:
    """Return a record with something in it gone or replaced."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(value))
        if not places:
            break
        container, key = draw.choice(places)
        if draw.random() < 0.5:
            del container[key]
        else:
            container[key] = copy.deepcopy(draw.choice(HOSTILE))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def fuzzed_readers(work: Path, count: int, seed: int) -> dict[str, Any]:
    """Read mutated files of every format."""
    folder, draw, outcome = work / "fuzz", random.Random(seed), Counter[str]()
    folder.mkdir()
    path = folder / "x_questions.json"
    for number in range(count):
        kind = draw.choice(sorted(RECORDS))
        records = mutate(RECORDS[kind], draw)
        rows = records if kind == "jsonl" and isinstance(records, list) else [records]
        data = "\n".join(map(json.dumps, rows)).encode()
        if draw.random() < 0.3:
            place = draw.randrange(len(data) + 1)
            data = data[:place] + draw.randbytes(draw.randint(0, 4)) + data[place + draw.randint(0, 9) :]
        path.write_bytes(data)
        try:
            read_users(path, format=draw.choice((kind, "auto")))
            outcome["read"] += 1
        except MtaError:
            outcome["refused"] += 1
        except Exception as error:
            kept = write_kept(work, data)
            raise Violation(f"input {number} ({kept}): {type(error).__name__}: {error}") from error
    return {"inputs": count, **dict(outcome)}


def write_kept(work: Path, data: bytes) -> Path:
    """Keep an input that did harm, outside of the folder that goes away."""
    path = work.parent / "faults-input.json"
    path.write_bytes(data)
    return path
