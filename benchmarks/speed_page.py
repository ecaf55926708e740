"""Gather the measured speeds of docs/results/speed: the headline ratios as JSON, all tables on one page.

    python benchmarks/speed_page.py docs/results

Reads the JSON and Markdown files that `speed.sh` and `gpu.py` leave in `speed/` and writes `speed.json` and
`speed/README.md`. Nothing is computed here: ratios are taken over as the benchmarks have written them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mta.files import read_json, write_json, write_text

HEADLINE = "lamp-2"
"""The case of `train.py` and `peak_memory.py` whose ratios stand for all."""
USERS_IN_A_BATCH = 32
COMMANDS = "benchmarks/speed.sh DATA"

PARTS = ("train", "processes", "ablations", "infer", "memory", "gpu", ".")
"""Folders of pages, in the order of the page."""


def train_ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratios of one case of `train.py`, by their names in speed.json."""
    names = {
        "engine vs peft plain": "train_vs_peft_plain",
        "engine vs peft best": "train_vs_peft_best",
        "engine vs peft packed": "train_vs_peft_packed",
        "engine vs hf trainer": "train_vs_hf_trainer",
        "floor / engine": "train_over_floor",
        "floor, whole rows / engine": "train_over_floor_of_whole_rows",
    }
    return {name: result["ratios"][key] for key, name in names.items() if key in result["ratios"]}


def infer_ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratios of one file of `infer.py` for the batch that stands for all."""
    (batch,) = (one for one in result["batches"] if one["users"] == USERS_IN_A_BATCH)
    names = {
        "base / engine": "infer_over_base",
        "engine vs peft adapter_names": "infer_vs_peft_adapter_names",
        "engine vs polylora": "infer_vs_polylora",
        "engine vs merge per user": "infer_vs_merge_per_user",
    }
    return {name: batch["ratios"][key] for key, name in names.items() if key in batch["ratios"]}


def memory_ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratios of one case of `peak_memory.py`."""
    names = {
        "engine / (peft plain + slots)": "memory_over_peft_plus_slots",
        "foretold / measured": "memory_foretold_over_measured",
        "foretold and libraries / process": "memory_foretold_over_process",
    }
    return {name: result["ratios"][key] for key, name in names.items()}


def process_ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the ratios of one file of `process_per_user.py`."""
    return {
        "train_vs_process_per_user": result["ratios"]["engine vs process per user"],
        "train_vs_process_per_user_base_loaded": result["ratios"]["the same, base model loaded before"],
    }


RATIOS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, float]]]] = {
    "train": (HEADLINE, train_ratios),
    "processes": ("bfloat16-4", process_ratios),
    "infer": ("all-bfloat16-8", infer_ratios),
    "memory": (HEADLINE, memory_ratios),
}
"""Folder -> name of the file whose ratios stand for all, and how to read the ratios of any of them."""


def processor(machine: Mapping[str, Any]) -> str:
    """Name the processor with its best unit for products, and their speed in bfloat16."""
    speed = [f"{machine['gflops']['bfloat16']} GFLOP/s in bfloat16"] if "gflops" in machine else []
    return ", ".join([machine["processor"], *machine.get("units", [])[-1:], *speed])


def headline(folder: Path) -> dict[str, Any]:
    """Return the content of speed.json."""
    ratios: dict[str, float] = {}
    others: dict[str, dict[str, float]] = {}
    machines: dict[str, Any] = {}
    commands = [COMMANDS]
    for part, (stands_for_all, ratios_of) in RATIOS.items():
        for path in sorted((folder / part).glob("*.json")):
            result = read_json(path)
            into = ratios if path.stem == stands_for_all else others.setdefault(f"{part} {path.stem}", {})
            into.update(ratios_of(result))
            machines[f"{part}/{path.name}"] = result["machine"]
    commands += sorted({found["command"] for found in machines.values() if "command" in found})
    for path in sorted((folder / "gpu").glob("*.json")):
        result = read_json(path)
        others[f"gpu {path.stem}, {result['device']}"] = result["ratios"]
        commands.append(f"python benchmarks/{result['command']}")
    return {
        "ratios": ratios,
        "what": f"train: case {HEADLINE} of benchmarks/train.py, time of the other way divided by the engine's; "
        "train_over_floor and infer_over_base: the bare base model's time divided by the engine's; "
        f"infer: {USERS_IN_A_BATCH} users in a batch, bfloat16, all linear layers, 8 tokens of answer; "
        "memory_over_peft_plus_slots: what the engine holds at the peak beyond the loaded base model, divided by the "
        "same of the plain loop and the engine's slots; memory_foretold_over_measured: of the engine's process without "
        "its libraries, memory_foretold_over_process: with them on both sides; train_vs_process_per_user: 4 users over "
        "two merged anchors, bfloat16",
        "other_cases": others,
        "machine": machines.get(f"train/{HEADLINE}.json", {}),
        "processors": {name: processor(found) for name, found in machines.items()},
        "commands": commands,
    }


def page(folder: Path) -> str:
    """Return all tables, one after the other."""
    paths = [path for part in PARTS for path in sorted((folder / part).glob("*.md")) if path.name != "README.md"]
    head = f"# Speed and memory, all tables\n\n`{COMMANDS}`; in words: [../../performance.md](../../performance.md)."
    return "\n\n".join([head, *(path.read_text(encoding="utf-8").strip() for path in paths)]) + "\n"


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_json(folder / "speed.json", headline(folder / "speed"))
    write_text(folder / "speed" / "README.md", page(folder / "speed"))


if __name__ == "__main__":
    main()
