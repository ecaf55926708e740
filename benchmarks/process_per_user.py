"""Adapting and answering one user after the other in processes of their own, against all of them in one.

    python benchmarks/process_per_user.py --data DIR --out docs/results/speed/processes [--users 4]
        [--dtype bfloat16] [--anyway]

The processes do what the original pipeline does for every user: merge the anchors into the weights and write the merged
model; load it in a new process, train the user's adapter (PEFT, micro-batches of 2) and write it; load both in a third
process and answer a question. The engine does the same in one process for all users: adapters over un-merged anchors,
written with their checksums and read again, then the answers. Starting it and loading the base model counts; a second
ratio leaves that out, as a server or a run over very many users has it behind it. There is no floor here: what the
processes spend is mostly starting, loading and writing.

What the adapters of both ways cost on their rows is asserted to be the same before any time is reported, as in
`train.py`, and so are the answers (in bfloat16 most of them: rounding may turn a greedy choice).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch

from measuring import ratio, rows_of, run, steadiness, table, take_turns, watched, write
from mta.adapter_files import load_adapter, save_adapter
from mta.base_model import BaseModel, load_base_model
from mta.config import EngineConfig, TrainConfig, from_dict, to_dict
from mta.files import make_folder, read_json, write_json
from mta.generation import Request, generate
from mta.lora.adapter import AdapterSum, Recipe, as_sum
from mta.memory_at_hand import keep_freed_memory
from mta.packing import TokenRow, left_pad
from mta.training_plan import TrainJob
from mta.training_store import adapter_path, train_and_store
from train import CASES, Case, make_jobs, require_equal
from training_peers import Adapters, PeftLoop

STAGES = ("merge", "train", "answer")
TOGETHER = "together"
NEW_TOKENS = 8
ENGINE, PROCESSES = "engine", "process per user"
LOADED = "the same, base model loaded before"


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
        (trained,) = loop([job]).values()
        loop.model.save_pretrained(folder / "adapter")
    save_adapter(folder / "trained.safetensors", trained, base=base, note={})


def answer(folder: Path, dtype: str) -> None:
    """Load the merged model and the adapter, and answer a question."""
    base = load_base_model(str(folder / "model"), dtype=dtype)
    model = peft.PeftModel.from_pretrained(base.model, str(folder / "adapter"))
    batch = left_pad([read_job(folder).rows[0].prompt], pad_id=base.pad_id, device=base.device)
    with torch.no_grad():
        made = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=NEW_TOKENS)
    write_json(folder / "answer.json", base.tokens.decode(made[0, batch.input_ids.shape[1] :].tolist()))


def write_job(folder: Path, job: TrainJob, base: BaseModel) -> None:
    """Write what the processes are given of one user."""
    make_folder(folder)
    rows = [{"prompt": row.prompt, "answer": row.answer} for row in job.rows]
    write_json(folder / "job.json", {"job_id": job.job_id, "config": to_dict(job.config), "rows": rows})
    if job.frozen is None:
        raise SystemExit(f"{job.job_id} has no anchors beneath; choose a case with some")
    save_adapter(folder / "merged.safetensors", job.frozen.make(), base=base, note={})


def read_job(folder: Path, base: BaseModel | None = None) -> TrainJob:
    """Read it back, with what lies beneath where a base model is given; else that is in the weights by now."""
    found = read_json(folder / "job.json")
    rows = tuple(TokenRow(tuple(row["prompt"]), tuple(row["answer"])) for row in found["rows"])
    frozen = None
    if base:
        merged = as_sum(load_adapter(folder / "merged.safetensors", base=base)[0])
        frozen = Recipe(merged.whole().fingerprint(), merged.rank, lambda: merged)
    return TrainJob(found["job_id"], rows, from_dict(TrainConfig, found["config"]), frozen=frozen)


# all users in one process -----------------------------------------------------------------------------------------


def together(folder: Path, name: str, dtype: str) -> None:
    """Adapt all users, keep their adapters, and answer for each; write down how long that took without the loading."""
    keep_freed_memory()
    base = load_base_model(name, dtype=dtype)
    started = time.perf_counter()
    jobs = [read_job(place, base) for place in sorted(folder.glob("user-*"))]
    kept = train_and_store(base, jobs, folder / "adapters", engine=EngineConfig(slots=8)).adapters
    requests = []
    for job in jobs:
        terms = job.frozen.parts().terms if job.frozen else ()
        whole = AdapterSum((*terms, (1.0, kept[job.job_id].load(base))))
        requests.append(Request(replace(job.rows[0], answer=()), whole))
    answers = generate(base, requests, max_new_tokens=NEW_TOKENS, engine=EngineConfig())
    write_json(folder / "answers.json", answers)
    write_json(folder / "seconds.json", time.perf_counter() - started)


# both ways --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """What the ways have made, and the engine's seconds without starting and loading, turn by turn."""

    adapters: dict[str, Adapters] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


def in_processes(base: BaseModel, jobs: Sequence[TrainJob], found: Found) -> None:
    """Do all users, one process a stage."""
    adapters, answers = {}, []
    for job in jobs:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_job(folder, job, base)
            for stage in STAGES:
                run_stage(stage, folder, base)
            adapters[job.job_id] = load_adapter(folder / "trained.safetensors")[0]
            answers.append(read_json(folder / "answer.json"))
    found.adapters[PROCESSES], found.answers[PROCESSES] = adapters, answers


def in_one(base: BaseModel, jobs: Sequence[TrainJob], found: Found) -> None:
    """Do all users in one process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, job in enumerate(jobs):
            write_job(folder / f"user-{number:04}", job, base)
        run_stage(TOGETHER, folder, base)
        paths = {job.job_id: adapter_path(folder / "adapters", job.job_id) for job in jobs}
        found.adapters[ENGINE] = {name: load_adapter(path, base=base)[0] for name, path in paths.items()}
        found.answers[ENGINE] = read_json(folder / "answers.json")
        found.seconds.append(read_json(folder / "seconds.json"))


def run_stage(stage: str, folder: Path, base: BaseModel) -> None:
    """Run a process of this script."""
    words = [sys.executable, __file__, "--stage", stage, "--folder", folder, "--base", base.name]
    dtype = str(base.dtype).removeprefix("torch.")
    subprocess.run([*map(str, words), "--dtype", dtype], check=True, stderr=subprocess.DEVNULL)


def measure(base: BaseModel, case: Case, jobs: Sequence[TrainJob], options: argparse.Namespace) -> dict[str, Any]:
    """Time both ways."""
    found = Found()
    ways = {ENGINE: partial(in_one, base, jobs, found), PROCESSES: partial(in_processes, base, jobs, found)}
    times = take_turns(ways, repeats=options.repeats, anyway=options.anyway)
    equality = require_equal(base, jobs, found.adapters)
    same = sum(one == two for one, two in zip(*found.answers.values(), strict=True))
    if same < (1.0 if base.dtype == torch.float32 else 0.5) * len(jobs):
        raise SystemExit(f"the ways agree on {same} of {len(jobs)} answers; not comparable")
    rows = rows_of(times, units=case.users, unit="users")
    times["engine, base model loaded before"] = [found.seconds[turn] for turn in times.turns]
    return {
        "users": case.users,
        "items": case.items,
        "dtype": case.dtype,
        "equality": {**equality, "equal answers": same},
        "moved within a turn, %": times.moved,
        "turns": times.record(),
        "rows": rows,
        "ratios": {
            f"engine vs {PROCESSES}": ratio(times, PROCESSES, ENGINE),
            LOADED: ratio(times, PROCESSES, "engine, base model loaded before"),
        },
    }


def page_of(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    rows = [
        [name, row["median_s"], f"{row['min_s']} - {row['max_s']}", round(3600 * result["users"] / row["median_s"])]
        for name, row in result["rows"].items()
    ]
    title = f"### One process per user: {result['users']} users x {result['items']} items of LaMP-2, {result['dtype']}"
    told = "; ".join(f"{key}: **{value}**" for key, value in result["ratios"].items())
    return "\n\n".join([title, table(["", "median s", "min - max", "users/h"], rows), told, steadiness(result)])


def compare(options: argparse.Namespace) -> None:
    """Time both ways and write one file."""
    case = replace(CASES["lamp-2-anchors"], users=options.users, dtype=options.dtype)
    base = load_base_model(options.base, dtype=options.dtype)
    work = partial(measure, base, case, make_jobs(base, case, options.data), options)
    result, where = watched(work, anyway=options.anyway)
    out = options.out / f"{options.dtype}-{options.users}.json" if options.out else None
    write(out, {**result, "machine": where}, page_of(result))


def main() -> None:
    """Compare, or do one stage of one user."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path, help="folder; the file is called after dtype and users")
    parser.add_argument("--stage", choices=(*STAGES, TOGETHER), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage == "merge":
        merge(options.folder, options.base, options.dtype)
    elif options.stage == "train":
        adapt(options.folder, options.dtype)
    elif options.stage == "answer":
        answer(options.folder, options.dtype)
    elif options.stage == TOGETHER:
        together(options.folder, options.base, options.dtype)
    else:
        compare(options)


if __name__ == "__main__":
    run(main)
