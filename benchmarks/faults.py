"""Faults on purpose: what is lost when processes die, disks fill up, bits flip and files come damaged.

    python benchmarks/faults.py --out docs/results/reliability [--kills 200] [--seed 0] [--only runs]

Real processes and real signals, on invented people and a tiny random model, so that a life takes about a second:

- `runs`: whole runs (bank, adaptation, answers, scores) killed with SIGKILL at random moments until one gets through;
  its results must be those of a run that nobody disturbed, and no finished adapter, bank or file of answers may change,
  go, or be made a second time on the way.
- `writes`: a process that replaces files all the time, killed; every write it has been told of must be there, whole.
- `disk`: runs on a file system that is too small (needs root, to mount one); it must have been full, what is there must
  be whole, and the run must end as undisturbed ones do once there is room.
- `damage`: bits flipped, files cut and emptied in a finished run, in runs cut off in a training and in their caches of
  vectors. The same call again must refuse the file by name, or end with the same results; where it reads the file, it
  must have named it.
- `fuzz`: mutated files of every data format; readers may raise the package's own errors and nothing else.
- `two`: a process starts in a folder where another is at work; it is refused, the other ends as undisturbed ones do.

Any violation ends the script with a message and exit code 1. Parts that are in the folder of results already stay there
until they are done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fault_damage import damaged_files
from fault_disks import full_disks
from fault_fuzz import fuzzed_readers
from fault_kills import killed_runs, killed_writes, two_at_once, undisturbed
from measuring import table, write
from mta.files import read_json

PARTS = ("runs", "writes", "disk", "damage", "fuzz", "two")


def main() -> None:
    """Do what is asked for and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills of runs; as many of writes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the lives
    logging.getLogger("mta").addHandler(logging.NullHandler())
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["mta.evaluation.run", "mta.tiny_model", "sklearn.cluster", "bm25s"])
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        os.environ["MTA_CACHE"] = str(work / "cache")
        wanted, _ = undisturbed(processes, work)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "runs": lambda: killed_runs(processes, work, options.kills, options.seed),
            "writes": lambda: killed_writes(processes, work, options.kills, options.seed),
            "disk": lambda: full_disks(processes, work, wanted, max(2, options.kills // 30)),
            "damage": lambda: damaged_files(work, options.kills, options.seed),
            "fuzz": lambda: fuzzed_readers(work, 50 * options.kills, options.seed),
            "two": lambda: two_at_once(processes, work, wanted, max(1, options.kills // 20)),
        }
        out = options.out / "faults.json" if options.out else None
        done = {name: parts[name]() for name in options.only or PARTS}
        found = read_json(out) if out and out.exists() else {}  # another process may have written
        found |= {"seeds": found.get("seeds", {}) | dict.fromkeys(done, options.seed), **done}
    rows = [(name, what, json.dumps(count)) for name in PARTS if name in found for what, count in found[name].items()]
    untried = [name for name in PARTS if name not in found or "skipped" in found[name]]
    left_out = f" Not tried: {', '.join(untried)}." if untried else ""
    page = f"{table(['part', 'what', 'how often'], rows)}\n\nLost or damaged: nothing.{left_out}"
    write(out, found, page)


if __name__ == "__main__":
    main()
