"""Training speed: this engine against a plain PEFT loop, in one process, interleaved, on LaMP-2 anchors.

Same model, weights, dtype, token rows, initial A, order of examples, updates, learning rates, clipping and AdamW. The
final losses of every anchor are asserted to agree before any time is reported. Peers:

- `peft plain`: one anchor after the other, micro-batches of 2 accumulated to the update, padded on the right, logits of
  all positions, the model's own loss; how most people train.
- `peft best`: the strongest variant of that loop: the whole update in one batch, logits of answer positions only.
- `peft packed`: PEFT's layers over this package's forward pass (rows packed without padding), one anchor at a time.
- `floor`: the base model's forward and backward pass alone (gradients to the embeddings, no adapters) on the very
  packs that this engine makes.

    python benchmarks/train_vs_peft.py --data DIR --out docs/results/train_vs_peft.json

Without --data, invented people are used. `--only engine` measures this engine's peak memory in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from mta.base_model import BaseModel, load_base_model
from mta.config import EngineConfig, PromptConfig, TrainConfig
from mta.data.personas import make_personas
from mta.data.read import read_users
from mta.files import write_json, write_text
from mta.forward import answer_nll
from mta.lora.stacked import initial_A
from mta.packing import TokenRow, fill_packs, left_pad, pack_rows
from mta.runtime import keep_freed_memory, peak_rss_bytes, versions
from mta.tasks import get_task
from mta.training import train
from mta.training_plan import TrainJob, learning_rate, update_examples
from mta.user_rows import user_rows

PROMPTS = PromptConfig(history_words=60, input_words=120, max_tokens=768)
KEY = "bank"


def make_jobs(base: BaseModel, options: argparse.Namespace) -> list[TrainJob]:
    """The most active pool users as anchors, capped to the asked number of items."""
    task = get_task("lamp-2")
    if options.data:
        users = read_users(options.data / "LaMP_2" / "pool_questions.json", task=task).users[: options.anchors]
    else:
        users = list(make_personas("lamp-2", people=options.anchors, history=40, queries=1, seed=0).users)
    config = TrainConfig(lr=5e-4, epochs=1, batch_size=options.batch_size, max_items=options.items)
    rows = {user.user_id: user_rows(base.tokens, task, user, train=config, prompts=PROMPTS).rows for user in users}
    return [TrainJob(name, found, config, init_key=KEY) for name, found in rows.items()]


def run_engine(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig) -> dict[str, float]:
    """Train with this package; return each job's last loss."""
    return {done.job_id: done.losses[-1] for done in train(base, jobs, engine=engine)}


def run_floor(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig) -> None:
    """Forward and backward of the bare model on the batches the engine makes."""
    for step in range(max(job.total for job in jobs)):
        rows = [row for job in jobs if step < job.total for row in update_rows(job, step)]
        for part in fill_packs(rows, len, tokens_per_batch=engine.tokens_per_batch):
            embeddings = base.model.get_input_embeddings()
            handle = embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
            answer_nll(base, pack_rows(part, device=base.device)).sum().backward()  # type: ignore[no-untyped-call]
            handle.remove()


def update_rows(job: TrainJob, step: int) -> list[TokenRow]:
    """The rows of one update."""
    chosen = update_examples(len(job.rows), job.config, job_id=job.job_id, step=step)
    return [job.rows[index] for index in chosen]


class PeftLoop:
    """One PEFT model, its adapter started afresh for each anchor."""

    def __init__(self, base: BaseModel, config: TrainConfig, *, kind: str) -> None:
        lora = peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, target_modules=list(config.target_modules), lora_dropout=0.0
        )
        self.base, self.config, self.kind = base, config, kind
        self.model = peft.get_peft_model(base.model, lora)
        self.layers = {n: m for n, m in self.model.base_model.model.named_modules() if hasattr(m, "lora_A")}

    def close(self) -> None:
        """Take the adapter out of the base model again."""
        self.model.unload()

    def __call__(self, jobs: Sequence[TrainJob]) -> dict[str, float]:
        """Train every job; return each job's last loss."""
        return {job.job_id: self._train(job) for job in jobs}

    def _train(self, job: TrainJob) -> float:
        for name, layer in self.layers.items():
            weight = layer.lora_A["default"].weight
            weight.data.copy_(initial_A(tuple(weight.shape), seed=job.config.seed, key=KEY, module=name))
            layer.lora_B["default"].weight.data.zero_()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=job.config.lr, weight_decay=0.0)
        loss = 0.0
        for step in range(job.total):
            optimizer.param_groups[0]["lr"] = learning_rate(job.config, step=step, total=job.total)
            optimizer.zero_grad()
            loss = self._accumulate(update_rows(job, step))
            torch.nn.utils.clip_grad_norm_(parameters, job.config.clip_norm)
            optimizer.step()
        return loss

    def _accumulate(self, rows: Sequence[TokenRow]) -> float:
        tokens = sum(len(row.answer) for row in rows)
        if self.kind != "plain":
            nll = (self._packed_nll(rows) if self.kind == "packed" else self._padded_nll(rows)) / tokens
            nll.backward()  # type: ignore[no-untyped-call]
            return float(nll.detach())
        total = 0.0
        for start in range(0, len(rows), 2):
            loss = self._plain_loss(rows[start : start + 2]) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _packed_nll(self, rows: Sequence[TokenRow]) -> Tensor:
        return answer_nll(self.base, pack_rows(rows, device=self.base.device)).sum()

    def _padded_nll(self, rows: Sequence[TokenRow]) -> Tensor:
        batch = left_pad([row.prompt + row.answer for row in rows], pad_id=self.base.pad_id, device="cpu")
        longest = max(len(row.answer) for row in rows)
        logits = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
        targets = torch.full((len(rows), longest), -100)
        for index, row in enumerate(rows):
            targets[index, longest - len(row.answer) :] = torch.tensor(row.answer)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    def _plain_loss(self, rows: Sequence[TokenRow]) -> Tensor:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.base.pad_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row.prompt + row.answer)
            mask[index, : len(row)] = 1
            labels[index, len(row.prompt) : len(row)] = torch.tensor(row.answer)
        found = self.model(input_ids=ids, attention_mask=mask, labels=labels)
        loss: Tensor = found.loss * (labels[:, 1:] != -100).sum()
        return loss


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def require_equal(losses: dict[str, dict[str, float]]) -> None:
    """Refuse to report times of different work."""
    ours = losses["engine"]
    for peer, found in losses.items():
        for name, value in found.items():
            if abs(value - ours[name]) > 1e-3 * max(1.0, abs(ours[name])):
                raise SystemExit(
                    f"{peer}: last loss of {name} is {value}, the engine's is {ours[name]}; not comparable"
                )


def measure(base: BaseModel, jobs: Sequence[TrainJob], engine: EngineConfig, repeats: int) -> dict[str, Any]:
    """Time all peers, interleaved."""
    kinds = ("plain", "best", "packed")
    times: dict[str, list[float]] = {name: [] for name in ("engine", *(f"peft {kind}" for kind in kinds), "floor")}
    losses: dict[str, dict[str, float]] = {}
    for turn in range(repeats + 1):
        times["engine"].append(seconds(lambda: losses.update(engine=run_engine(base, jobs, engine))))
        for kind in kinds:
            name, loop = f"peft {kind}", PeftLoop(base, jobs[0].config, kind=kind)
            times[name].append(seconds(lambda: losses.update({name: loop(jobs)})))  # noqa: B023 - called at once
            loop.close()
        times["floor"].append(seconds(lambda: run_floor(base, jobs, engine)))
        require_equal(losses)
        if turn == 0:  # warm-up: first touch of memory
            times = {name: [] for name in times}
    tokens = sum(len(row) for job in jobs for step in range(job.total) for row in update_rows(job, step))
    rows = {
        name: {
            "median_s": round(statistics.median(found), 2),
            "min_s": round(min(found), 2),
            "max_s": round(max(found), 2),
            "tokens_per_s": round(tokens / statistics.median(found), 1),
        }
        for name, found in times.items()
    }
    ratios = {
        f"train_vs_{name.replace(' ', '_')}": round(
            statistics.median([b / a for a, b in zip(times["engine"], found, strict=True)]), 3
        )
        for name, found in times.items()
        if name.startswith("peft")
    }
    ratios["train_over_floor"] = round(
        statistics.median([a / b for a, b in zip(times["engine"], times["floor"], strict=True)]), 3
    )
    return {"tokens": tokens, "rows": rows, "ratios": ratios}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--anchors", type=int, default=6)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tokens-per-batch", type=int, default=EngineConfig().tokens_per_batch)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["engine"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    base = load_base_model(options.base)
    jobs = make_jobs(base, options)
    engine = EngineConfig(slots=8, tokens_per_batch=options.tokens_per_batch)
    if options.only:
        took = seconds(lambda: run_engine(base, jobs, engine))
        print(f"engine {took:.1f} s, peak memory {(peak_rss_bytes() or 0) / 2**30:.2f} GiB")
        return
    load_before = os.getloadavg()[0]
    found = measure(base, jobs, engine, options.repeats)
    result = {
        **found,
        "set_up": {**{k: str(v) for k, v in vars(options).items() if k != "out"}, "dtype": str(base.dtype)},
        "machine": {"threads": torch.get_num_threads(), "load_before": load_before, "load_after": os.getloadavg()[0]},
        "versions": versions(),
    }
    lines = ["| | median s | min - max | tokens/s |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {name} | {row['median_s']} | {row['min_s']} - {row['max_s']} | {row['tokens_per_s']} |"
        for name, row in found["rows"].items()
    ]
    lines += ["", *(f"- {name}: {value}" for name, value in found["ratios"].items())]
    print("\n".join(lines))
    if options.out:
        write_json(options.out, result)
        write_text(options.out.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
