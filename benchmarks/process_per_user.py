"""Adapting and answering one user after the other in processes of their own, against all of them in one.

    python benchmarks/process_per_user.py --data DIR --out docs/results/speed [--users 4] [--anyway]

The processes do what the original pipeline does for every user: merge the anchors into the weights and write the merged
model; load it in a new process, train the user's adapter (PEFT, micro-batches of 2) and write it; load both in a third
process and answer a question. The engine does the same in this process: adapters over un-merged anchors, then one
answer for each user. The base model is loaded before, as a server or a run over many users has it; loading is reported.

The last losses of both are asserted to agree before any time is reported.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch

from measuring import machine, ratio, refuse_busy, rows_of, table, take_turns, write
from mta.adapter_files import load_adapter, save_adapter
from mta.base_model import BaseModel, load_base_model
from mta.config import EngineConfig, TrainConfig, from_dict, to_dict
from mta.files import read_json, write_json
from mta.generation import Request, generate
from mta.lora.adapter import AdapterSum
from mta.packing import TokenRow, left_pad
from mta.runtime import keep_freed_memory
from mta.training import train
from mta.training_plan import TrainJob
from train import CASES, make_jobs, require_equal
from training_peers import Losses, PeftLoop

STAGES = ("merge", "train", "answer")
NEW_TOKENS = 8


# one user, stage by stage, each in a process of its own -----------------------------------------------------------


def merge(folder: Path, name: str, dtype: str) -> None:
    """Add the anchors to the weights and write the whole model."""
    base = load_base_model(name, dtype=dtype)
    merged = load_adapter(folder / "merged.safetensors", base=base)[0]
    for module in merged.modules:
        weight = base.model.get_submodule(module).weight
        weight.data += merged.delta(module).to(weight)
    base.model.save_pretrained(folder / "model")
    base.tokens.tokenizer.save_pretrained(folder / "model")


def adapt(folder: Path, dtype: str) -> None:
    """Train the user's adapter over the merged model and write it."""
    base = load_base_model(str(folder / "model"), dtype=dtype)
    job = read_job(folder)
    with closing(PeftLoop(base, job.config, kind="plain")) as loop:
        losses = loop([job])
        loop.model.save_pretrained(folder / "adapter")
    write_json(folder / "losses.json", losses)


def answer(folder: Path, dtype: str) -> None:
    """Load the merged model and the adapter, and answer a question."""
    base = load_base_model(str(folder / "model"), dtype=dtype)
    model = peft.PeftModel.from_pretrained(base.model, str(folder / "adapter"))
    batch = left_pad([read_job(folder).rows[0].prompt], pad_id=base.pad_id, device=base.device)
    with torch.no_grad():
        model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=NEW_TOKENS)


def write_job(folder: Path, job: TrainJob, base: BaseModel) -> None:
    """Write what the processes of one user are given."""
    rows = [{"prompt": row.prompt, "answer": row.answer} for row in job.rows]
    write_json(folder / "job.json", {"job_id": job.job_id, "config": to_dict(job.config), "rows": rows})
    if job.frozen is None:
        raise SystemExit(f"{job.job_id} has no anchors beneath; choose a case with some")
    save_adapter(folder / "merged.safetensors", job.frozen.make(), base=base, note={})


def read_job(folder: Path) -> TrainJob:
    """Read it back; the anchors are in the weights by now."""
    found = read_json(folder / "job.json")
    rows = tuple(TokenRow(tuple(row["prompt"]), tuple(row["answer"])) for row in found["rows"])
    return TrainJob(found["job_id"], rows, from_dict(TrainConfig, found["config"]))


# both ways --------------------------------------------------------------------------------------------------------


def in_processes(base: BaseModel, jobs: Sequence[TrainJob], losses: dict[str, Losses]) -> None:
    """Do all users, one process a stage."""
    found: Losses = {}
    for job in jobs:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_job(folder, job, base)
            for stage in STAGES:
                words = [sys.executable, __file__, "--stage", stage, "--folder", folder, "--base", base.name]
                dtype = str(base.dtype).removeprefix("torch.")
                subprocess.run([*map(str, words), "--dtype", dtype], check=True, stderr=subprocess.DEVNULL)
            found |= read_json(folder / "losses.json")
            shutil.rmtree(folder / "model")
    losses["process per user"] = found


def in_one(base: BaseModel, jobs: Sequence[TrainJob], losses: dict[str, Losses]) -> None:
    """Do all users here, in shared batches."""
    found, requests = {}, []
    beneath = {job.job_id: job.frozen for job in jobs}
    for done in train(base, jobs, engine=EngineConfig(slots=8)):
        found[done.job_id] = done.losses[-1]
        frozen = beneath[done.job_id]
        terms = frozen.parts().terms if frozen else ()
        (row,) = (job.rows[0] for job in jobs if job.job_id == done.job_id)
        requests.append(Request(replace(row, answer=()), AdapterSum((*terms, (1.0, done.adapter)))))
    generate(base, requests, max_new_tokens=NEW_TOKENS, engine=EngineConfig())
    losses["engine"] = found


def compare(options: argparse.Namespace) -> None:
    """Time both ways and write one file."""
    refuse_busy(anyway=options.anyway)
    keep_freed_memory()
    case = replace(CASES["lamp-2-anchors"], users=options.users, dtype=options.dtype)
    started = time.perf_counter()
    base = load_base_model(options.base, dtype=options.dtype)
    loading = time.perf_counter() - started
    jobs, losses, before = make_jobs(base, case, options.data), dict[str, Losses](), machine()
    ways = {"engine": in_one, "process per user": in_processes}
    times = take_turns({name: partial(way, base, jobs, losses) for name, way in ways.items()}, repeats=options.repeats)
    require_equal(losses, tolerance=1e-3 if options.dtype == "float32" else 5e-2)
    result: dict[str, Any] = {
        "users": case.users,
        "items": case.items,
        "dtype": case.dtype,
        "loading the base model once, s": round(loading, 2),
        "rows": rows_of(times, units=case.users, unit="users"),
        "ratios": {"engine vs process per user": ratio(times, "process per user", "engine")},
        "machine": before,
    }
    head = ["", "s", "users/s"]
    rows = [[name, row["median_s"], row["users_per_s"]] for name, row in result["rows"].items()]
    title = f"### One process per user: {case.users} users x {case.items} items of LaMP-2, {case.dtype}"
    told = "; ".join(f"{key}: **{value}**" for key, value in result["ratios"].items())
    write(
        options.out / "process_per_user.json" if options.out else None,
        result,
        "\n\n".join([title, table(head, rows), told]),
    )


def main() -> None:
    """Compare, or do one stage of one user."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage == "merge":
        merge(options.folder, options.base, options.dtype)
    elif options.stage == "train":
        adapt(options.folder, options.dtype)
    elif options.stage == "answer":
        answer(options.folder, options.dtype)
    else:
        compare(options)


if __name__ == "__main__":
    main()
