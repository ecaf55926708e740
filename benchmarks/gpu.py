"""Training speed and memory on a GPU, at the shape of a real model with random weights, against a PEFT loop.

    python benchmarks/gpu.py --shape llama-3-8b --out docs/results/speed/gpu
    python benchmarks/gpu.py --shape smollm2-135m --out docs/results/speed/gpu
    python benchmarks/gpu.py --shape tiny --device cpu --users 2 --repeats 1 --anyway  # whether it runs

Speed and memory depend on a model's shape, not on its weights, so nothing is downloaded. Users have examples of 100 to
200 tokens of which 4 are learned. Ways, taking turns: the engine, row by row and in grouped products where the device
has them; a PEFT loop in micro-batches of 2 accumulated to the update, and one with the whole update in a batch; and the
base model's forward and backward pass alone. What the trained adapters cost on their rows is asserted to be the same
before any time is reported, as in `train.py`. Beside the times stand the share of the FLOP floor (the time that the
matrix products alone would take at the speed of large ones here, measured), and the peak of the device's memory as
foretold and as it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from drawn_rows import ANSWER, drawn_row
from measuring import ratio, rows_of, run, table, take_turns, watched, write
from mta.base_model import BaseModel, base_shape, wrap_model
from mta.config import ALL_LINEAR, EngineConfig, TrainConfig, to_dict
from mta.memory import training_memory
from mta.runtime import choose_device
from mta.tiny_model import byte_tokenizer
from mta.training_plan import TrainJob
from train import ENGINE, FLOOR, PLAIN, peer, run_engine, take_trainings
from training_peers import Adapters, bare, trained_tokens, update_rows

SHAPES: Mapping[str, dict[str, Any]] = {
    "llama-3-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Architectures as published."""
GROUPED, WHOLE = "engine, grouped", "peft whole update"
T = TypeVar("T")


def make_base(config: LlamaConfig, name: str, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """Make a model of random weights on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return wrap_model(model, byte_tokenizer(), name=name)


def make_jobs(words: int, options: argparse.Namespace) -> list[TrainJob]:
    """Draw users and their examples."""
    generator = torch.Generator().manual_seed(0)
    config = TrainConfig(
        rank=options.rank, alpha=2.0 * options.rank, lr=1e-3, epochs=1, batch_size=8, target_modules=ALL_LINEAR
    )
    row = partial(drawn_row, generator, words=words, lengths=(100 - len(ANSWER), 200 - len(ANSWER)))
    return [
        TrainJob(f"user {number}", tuple(row() for _ in range(options.items)), config)
        for number in range(options.users)
    ]


def product_speed(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the floating-point operations a second of one large matrix product."""
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = take_turns(
        {"product": lambda: settled(lambda: [one @ two for _ in range(10)], device)}, repeats=5, anyway=True
    )
    return 10 * 2 * size**3 / min(times["product"])


def settled(work: Callable[[], T], device: torch.device) -> T:
    """Do work, wait until the device has done it, and return what came of it."""
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return found


def floor_flops(base: BaseModel, jobs: Sequence[TrainJob]) -> float:
    """Return the operations of the products that no way can do without.

    Forward and backward to the activations through all linear layers for every token but each row's last, and through
    the head for every answer token; attention and adapters are left out.
    """
    linears = sum(d_out * d_in for d_out, d_in in base.shapes(ALL_LINEAR).values())
    head = base.model.get_output_embeddings().weight.numel()
    rows = [row for job in jobs for step in range(job.total) for row in update_rows(job, step)]
    return float(sum(4 * linears * (len(row) - 1) + 4 * head * len(row.answer) for row in rows))


def peak_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the most memory that the device held during work."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    settled(work, device)
    return torch.cuda.max_memory_allocated()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all ways and weigh them."""
    device, dtype = choose_device(options.device), torch.bfloat16
    config = LlamaConfig(**SHAPES[options.shape])
    engine = EngineConfig(slots=options.slots, tokens_per_batch=options.tokens_per_batch)
    jobs = make_jobs(config.vocab_size, options)
    shape = base_shape(config, byte_tokenizer(), name=options.shape, device=device, dtype=dtype)
    told = training_memory(shape, jobs, engine=engine)
    base = make_base(config, options.shape, device, dtype)
    trainings: dict[str, Callable[[], Adapters]] = {ENGINE: partial(run_engine, base, jobs, engine)}
    if device.type == "cuda":
        trainings[GROUPED] = partial(run_engine, base, jobs, replace(engine, grouped=True))
    trainings |= {way: partial(peer, base, jobs, way) for way in (PLAIN, WHOLE)}
    ways = {name: partial(settled, work, device) for name, work in trainings.items()}
    floors = {FLOOR: partial(settled, partial(bare, base, jobs, engine), device)}
    times, equality = take_trainings(base, jobs, ways, floors=floors, repeats=options.repeats, anyway=options.anyway)
    tokens, flops = trained_tokens(jobs), floor_flops(base, jobs)
    speed = product_speed(device, dtype, 8192 if device.type == "cuda" else 512)
    rows = rows_of(times, units=tokens, unit="tokens")
    for row in rows.values():
        row["users_per_hour"] = round(3600 * options.users / row["median_s"], 1)
        row["share_of_flop_floor"] = round(flops / speed / row["median_s"], 3)
    return {
        "shape": options.shape,
        "users": options.users,
        "items": options.items,
        "tokens": tokens,
        "rank": options.rank,
        "engine": to_dict(engine),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "tflops_of_a_large_product": round(speed / 1e12, 2),
        "equality": equality,
        "rows": rows,
        "ratios": {
            **{f"{ENGINE} vs {way}": ratio(times, way, ENGINE) for way in trainings if way != ENGINE},
            "floor / engine": ratio(times, FLOOR, ENGINE),
        },
        "peak_bytes": {"foretold": told.total, **{name: peak_of(ways[name], device) for name in trainings}},
    }


def page_of(found: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    title = (
        f"### {found['shape']} on {found['device']}: {found['users']} users x {found['items']} examples, "
        f"{found['tokens']:,} tokens, rank {found['rank']} on all linear layers, bfloat16"
    )
    rows = [
        [
            name,
            row["median_s"],
            f"{row['min_s']} - {row['max_s']}",
            row["tokens_per_s"],
            row["users_per_hour"],
            row["share_of_flop_floor"],
        ]
        for name, row in found["rows"].items()
    ]
    peaks = ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in found["peak_bytes"].items() if value)
    return "\n\n".join(
        [
            title,
            table(["", "median s", "min - max", "tokens/s", "users/h", "share of the FLOP floor"], rows),
            "; ".join(f"{key}: **{value}**" for key, value in found["ratios"].items()),
            f"A large product: {found['tflops_of_a_large_product']} Tflop/s. Peak memory: {peaks}.",
        ]
    )


def main() -> None:
    """Measure one shape and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--items", type=int, default=16, help="examples of each user, one pass over them")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--anyway", action="store_true", help="measure on a busy machine")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found, where = watched(partial(measure, options), anyway=options.anyway)
    out = options.out / f"{options.shape}.json" if options.out else None
    write(out, {**found, "machine": where, "command": f"gpu.py --shape {options.shape}"}, page_of(found))


if __name__ == "__main__":
    run(main)
