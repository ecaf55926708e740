"""Choose the learning rates and epochs of the preset `small`, on pool users only.

Pool users play two parts: a few act as anchors (bank settings), others, with their histories cut to a target's length,
act as targets (adaptation settings). Each is trained on part of the own history and judged after every epoch on
held-out items of the same history. The population adapter is trained on all items of the anchors and judged on the
held-out items of the others. No target user and no target answer is read.

    python benchmarks/choose_small_preset.py --data DIR --task lamp-2 --part bank --out lamp-2_bank.json

The output holds every trial: settings and the mean held-out loss (nats per answer token) before training and after each
epoch. It is written after each trial, and finished trials are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from mta.base_model import BaseModel, load_base_model
from mta.config import EngineConfig, PromptConfig, TrainConfig
from mta.data.read import read_users
from mta.files import read_json, write_json
from mta.memory_at_hand import keep_freed_memory
from mta.records import User
from mta.tasks import get_task
from mta.tasks.task import Task
from mta.training import train
from mta.training_plan import TrainJob
from mta.user_rows import user_rows

PROMPTS = PromptConfig(history_words=60, input_words=120, max_tokens=768)
BANK = TrainConfig(rank=8, alpha=16, batch_size=4, epochs=4, held_out_share=0.25, patience=99)
ADAPT = dataclasses.replace(BANK, rank=4, alpha=8)
CONSTANT: dict[str, Any] = {"schedule": "constant", "warmup_ratio": 0.0}
KEY = ("lr", "schedule", "batch_size", "epochs", "rank")


def trials() -> list[tuple[str, TrainConfig]]:
    """Every setting tried: (part, config). Constant rates show how far to go, cosine ones are candidates."""
    adapt = [
        dataclasses.replace(ADAPT, lr=1e-3, batch_size=2, epochs=3),
        *(dataclasses.replace(ADAPT, lr=lr, **CONSTANT) for lr in (1e-3, 5e-4, 2e-3)),
    ]
    bank = [
        dataclasses.replace(BANK, lr=1e-3, epochs=3),
        *(dataclasses.replace(BANK, lr=lr, **CONSTANT) for lr in (5e-4, 1e-3)),
    ]
    population = [dataclasses.replace(BANK, lr=lr, batch_size=8, epochs=3) for lr in (1e-3, 5e-4)]
    parts = {"adapt": adapt, "bank": bank, "population": population}
    return [(part, config) for part, configs in parts.items() for config in configs]


def people(pool: list[User], part: str, *, anchors: int, targets: int, target_items: int) -> list[User]:
    """The most active users act as anchors (24 items), the next ones as targets."""
    if part == "bank":
        return [dataclasses.replace(user, history=user.history[-24:]) for user in pool[:anchors]]
    return [
        dataclasses.replace(user, history=user.history[-target_items:]) for user in pool[anchors : anchors + targets]
    ]


def own_jobs(base: BaseModel, task: Task, users: list[User], config: TrainConfig) -> list[TrainJob]:
    """One adapter per user, held-out items of the same user."""
    found = [(user, user_rows(base.tokens, task, user, train=config, prompts=PROMPTS)) for user in users]
    return [
        TrainJob(user.user_id, rows.rows, config, held_out=rows.held_out)
        for user, rows in found
        if rows.rows and rows.held_out
    ]


def population_job(
    base: BaseModel, task: Task, anchors: list[User], others: list[User], config: TrainConfig
) -> list[TrainJob]:
    """One adapter for all anchors' items, held-out items of the others."""
    whole = dataclasses.replace(config, held_out_share=0.0)
    rows = [r for user in anchors for r in user_rows(base.tokens, task, user, train=whole, prompts=PROMPTS).rows]
    held_out = [r for job in own_jobs(base, task, others, config) for r in job.held_out]
    return [TrainJob("population", tuple(rows), config, held_out=tuple(held_out))]


def run_trial(base: BaseModel, jobs: list[TrainJob]) -> dict[str, Any]:
    """Train all jobs of a trial together and average their held-out curves."""
    started = time.monotonic()
    done = list(train(base, jobs, engine=EngineConfig(slots=16)))
    curves = [trained.held_out_losses for trained in done]
    mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
    return {
        "adapters": len(done),
        "tokens": sum(trained.tokens for trained in done),
        "seconds": round(time.monotonic() - started, 1),
        "held_out_by_epoch": [round(value, 4) for value in mean],
    }


def main() -> None:
    """Run the trials that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with <LaMP_N>/pool_questions.json")
    parser.add_argument("--task", required=True)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--anchors", type=int, default=4)
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--target-items", type=int, default=10)
    parser.add_argument("--part", choices=["adapt", "bank", "population"], help="only these trials")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    task = get_task(options.task)
    pool = read_users(options.data / task.lamp_name / "pool_questions.json", task=task).users
    keep_freed_memory()
    base = load_base_model(options.base)
    results: dict[str, Any] = read_json(options.out) if options.out.exists() else {"task": task.task_id, "trials": []}
    for part, config in trials():
        if options.part not in (None, part):
            continue
        settings = {"part": part, **{key: getattr(config, key) for key in KEY}}
        if any(all(trial[key] == value for key, value in settings.items()) for trial in results["trials"]):
            continue
        sizes = {"anchors": options.anchors, "targets": options.targets, "target_items": options.target_items}
        if part == "population":
            jobs = population_job(base, task, people(pool, "bank", **sizes), people(pool, "adapt", **sizes), config)
        else:
            jobs = own_jobs(base, task, people(pool, part, **sizes), config)
        results["trials"].append({**settings, **run_trial(base, jobs)})
        write_json(options.out, results)


if __name__ == "__main__":
    main()
