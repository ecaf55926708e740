"""What it costs in quality to keep people's adapters in fewer bits.

    python benchmarks/record_quality.py --data DIR --out docs/results/speed [--task lamp-2] [--users 24]

Adapters of the most active people of the pool are trained in float32 on all but a fifth of their items, then stored as
flat records in each number format and read back (`write_record`, `read_record`), as the user store keeps them. Reported
are the bytes of a record, how far each delta is from the trained one, and the loss per answer token on the items that
were held out, beside that of the bare base model; differences are paired by person. No target user is read.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import machine, table, write
from mta.base_model import BaseModel, load_base_model
from mta.config import EngineConfig, PromptConfig, TrainConfig
from mta.data.read import read_users
from mta.flat_records import DTYPES, Numbers, known_numbers, read_record, schema_of, write_record
from mta.generation import Request, score_answers
from mta.lora.adapter import Adapter, adapter_from_tensors, as_sum, distance
from mta.memory_at_hand import keep_freed_memory
from mta.tasks import get_task
from mta.training import train
from mta.training_plan import TrainJob
from mta.user_rows import UserRows, user_rows

PROMPTS = PromptConfig(history_words=40, input_words=90, max_tokens=768)
TRAIN = TrainConfig(lr=1e-3, epochs=3, batch_size=8, rank=4, alpha=8.0, max_items=30, held_out_share=0.2)
FORMATS: tuple[Numbers, ...] = tuple(known_numbers(name) for name in DTYPES)
BASE = "bare base model"


def stored(adapter: Adapter, base: BaseModel, numbers: Numbers) -> tuple[Adapter, int]:
    """Return an adapter as it comes back from a record, and the bytes of the record."""
    tensors = dict(adapter.tensors())
    schema = schema_of(tensors, base_fingerprint=base.fingerprint, numbers=numbers)
    record = write_record(tensors, schema)
    return adapter_from_tensors(read_record(record, schema), where=numbers), len(record)


def held_out_losses(base: BaseModel, rows: Sequence[UserRows], adapters: Sequence[Adapter | None]) -> list[float]:
    """Return each person's loss per answer token on the held-out items, in nats."""
    requests = [
        Request(row, as_sum(adapter) if adapter else None)
        for user, adapter in zip(rows, adapters, strict=True)
        for row in user.held_out
    ]
    nll = iter(score_answers(base, requests, engine=EngineConfig()))
    return [sum(next(nll) for _ in user.held_out) / sum(len(row.answer) for row in user.held_out) for user in rows]


def measure(base: BaseModel, rows: Sequence[UserRows]) -> list[dict[str, Any]]:
    """Return a row for the base model and for each number format."""
    jobs = [TrainJob(user.user_id, user.rows, TRAIN) for user in rows]
    trained = {done.job_id: done.adapter for done in train(base, jobs, engine=EngineConfig())}
    exact = [trained[user.user_id] for user in rows]
    reference = held_out_losses(base, rows, exact)
    found = [{"kept as": BASE, "bytes": 0, **against(reference, held_out_losses(base, rows, [None] * len(rows)))}]
    for numbers in FORMATS:
        back, sizes = zip(*(stored(adapter, base, numbers) for adapter in exact), strict=True)
        apart = max(distance(one, other)[0] for one, other in zip(exact, back, strict=True))
        losses = held_out_losses(base, rows, back)
        found.append({"kept as": numbers, "bytes": sizes[0], "delta apart": apart, **against(reference, losses)})
    return found


def against(reference: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Return the mean loss, and the mean and the largest difference from the adapters as trained."""
    differences = [one - other for one, other in zip(losses, reference, strict=True)]
    return {
        "loss": statistics.mean(losses),
        "difference": statistics.mean(differences),
        "largest": max(differences, key=abs),
    }


def page_of(found: Sequence[dict[str, Any]], options: argparse.Namespace, people: int) -> str:
    """Return the formats as Markdown."""
    head = ["kept as", "bytes a user", "delta apart, at most", "loss per answer token", "difference", "of one person"]
    rows = [
        [
            one["kept as"],
            f"{one['bytes']:,}",
            f"{one['delta apart']:.1e}" if "delta apart" in one else "",
            f"{one['loss']:.4f}",
            f"{one['difference']:+.1e}",
            f"{one['largest']:+.1e}",
        ]
        for one in found
    ]
    title = f"### Adapters in fewer bits: {options.base}, {options.dtype}, {options.task}, {people} people of the pool"
    return f"{title}\n\n{table(head, rows)}"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with LaMP_1 to LaMP_5")
    parser.add_argument("--task", default="lamp-2")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", help="of the base model's weights and activations")
    parser.add_argument("--users", type=int, default=24)
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    keep_freed_memory()
    task, base = get_task(options.task), load_base_model(options.base, dtype=options.dtype)
    users = read_users(options.data / task.lamp_name / "pool_questions.json", task=task).users
    active = sorted(users, key=lambda user: (-len(user.history), user.user_id))[: options.users]
    made = [user_rows(base.tokens, task, user, train=TRAIN, prompts=PROMPTS) for user in active]
    rows = [user for user in made if user.held_out]
    found = measure(base, rows)
    out = options.out / f"record_quality-{options.task}.json" if options.out else None
    write(out, {"formats": found, "people": len(rows), "machine": machine()}, page_of(found, options, len(rows)))


if __name__ == "__main__":
    main()
