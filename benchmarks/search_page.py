"""Put the trials of search.py on one page.

    python benchmarks/search_page.py docs/results/search

Reads `lamp-*.json` in the folder and writes `README.md` beside them. Nothing is computed here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mta.evaluation.markdown import markdown_grid
from mta.files import read_json, write_text

HEAD = """# Trials on people of the pool

Made by `benchmarks/search.py`, one `lamp-*.json` a task, in which every trial stands with its settings; this page by
`benchmarks/search_page.py`. Some people of the pool play targets, with as many history items as targets have; all
others are the pool. No target user plays a part. What was concluded:
[../../personalization.md](../../personalization.md).

Settings as in the column say; SmolLM2-135M in bfloat16, seed 42, one run each. With so few people, differences below
about .05 in NLL of labels, .01 in NLL of texts and .08 in accuracy are noise. "cal.": at the temperature that fits the
other people; "+prior", "+memory", "+pooled": label scores corrected with what fits the other people best. The trials
were made over several days by code that differs in how closely such weights are held to their start.
"""
COLUMNS: Mapping[str, str] = {
    "label_accuracy": "Acc",
    "mae": "MAE",
    "rouge_1": "R-1",
    "nll": "NLL",
    "nll_calibrated": "NLL cal.",
    "nll_with_prior": "NLL +prior",
    "nll_with_memory": "NLL +memory",
    "nll_with_all": "NLL +pooled",
    "label_accuracy_with_all": "Acc +pooled",
}
"""Score of a trial -> its column; scores that no row of a task has are left out."""


def section(task_id: str, trials: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one task's table."""
    rows = [(name, method, scores) for name, one in trials.items() for method, scores in one["scores"].items()]
    shown = [key for key in COLUMNS if any(key in scores for _, _, scores in rows)]
    lines = [
        [name, method, *(f"{scores[key]:.3f}" if key in scores else "-" for key in shown)]
        for name, method, scores in rows
    ]
    people = next(iter(trials.values()))["people"]
    grid = markdown_grid(["trial", "method", *(COLUMNS[key] for key in shown)], lines)
    return f"## {task_id}\n\n{people} people who play targets.\n\n{grid}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = {path.stem: read_json(path) for path in sorted(folder.glob("lamp-*.json"))}
    parts = [HEAD.rstrip(), *(section(task_id, trials) for task_id, trials in found.items())]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
