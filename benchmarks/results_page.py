"""Gather the saved scores of docs/results into one page of Markdown.

    python benchmarks/results_page.py docs/results

Reads `lamp-*/scores.json`, `figures/*/*/scores.json` and `figures/*/growth.json` in the folder and writes `README.md`
beside them: all methods of all tasks at a glance; for each task the command, what was capped, seeds and sizes; for
each figure its command and table. Nothing is computed here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mta.evaluation.formats import metric_title
from mta.evaluation.notes import capped_items
from mta.evaluation.scores_file import shown_metrics
from mta.evaluation.table import markdown_table
from mta.files import read_json, write_text

HEAD = Path(__file__).with_name("results_head.md")
"""What stands above the tables."""


def overview(found: Sequence[Mapping[str, Any]]) -> str:
    """All tasks in one table: each task's first metric and the likelihood, without intervals."""
    columns = [(scores, metric) for scores in found for metric in (shown_metrics(scores)[0], "nll")]
    names = dict.fromkeys(name for scores in found for name in scores["methods"])
    head = ["method", *(f"{scores['task']} {metric_title(metric)}" for scores, metric in columns)]
    lines = [head, ["---", *("---:" for _ in columns)]]
    for name in names:
        values = [scores["methods"].get(name, {"metrics": {}})["metrics"].get(metric) for scores, metric in columns]
        lines.append([name, *("-" if value is None else f"{value:.3f}" for value in values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def once(scores: Mapping[str, Any]) -> str:
    """Name the trained rows that answered under one seed where others have several; "" where there are none."""
    several = len(scores["seeds"]) > 1
    names = [name for name, method in scores["methods"].items() if several and len(method.get("seeds", ())) == 1]
    return ", ".join(names)


def section(scores: Mapping[str, Any]) -> str:
    """One task: what was done, and where its table is."""
    card = scores["run"]
    settings = card["settings"]
    top_k = settings["top_k"] if "top_k" in settings else settings["match"]["top_k"]  # where earlier runs have it
    wanted = ("capped target users", "capped pool users", "left out of the pool")
    facts = [
        f"- `{card['command']}`",
        f"- {scores['people']} people, {scores['queries']} questions; seeds {scores['seeds']}; anchors asked / kept: "
        f"{card['anchors asked / kept']}; K = {top_k}; merge {card['merge cat vs linear']}",
        *([f"- one seed only, to save time: {once(scores)}"] if once(scores) else []),
        *([f"- trained on at most {capped_items(scores)}"] if capped_items(scores) else []),
        *(f"- {name}: {card[name]}" for name in wanted if name in card),
        f"- [every method with intervals, comparisons, slices]({scores['task']}/table.md)",
    ]
    return "\n".join([f"## {scores['task']}", "", *facts])


def figure(path: Path) -> str:
    """One sweep: its command and table."""
    scores = read_json(path)
    title = (
        f"### {scores['sweep']['figure']}: {scores['sweep']['title']}, {scores['task']}, {scores['sweep']['method']}"
    )
    return "\n".join([title, "", f"`{scores['run']['command']}`", "", markdown_table(scores)])


def growth(path: Path) -> str:
    """Figure 2: its command and table."""
    found = read_json(path)
    table = path.with_suffix(".md").read_text(encoding="utf-8")
    return "\n".join([f"### Figure 2: {found['task']}", "", f"`{found['run']['command']}`", "", table])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = [read_json(path) for path in sorted(folder.glob("lamp-*/scores.json"))]
    sweeps = [figure(path) for path in sorted(folder.glob("figures/*/*/scores.json"))]
    costs = [growth(path) for path in sorted(folder.glob("figures/*/growth.json"))]
    figures = ["## Figures 2 to 6", *costs, *sweeps] if costs or sweeps else []
    write_text(
        folder / "README.md",
        "\n\n".join([HEAD.read_text(encoding="utf-8").rstrip(), overview(found), *map(section, found), *figures])
        + "\n",
    )


if __name__ == "__main__":
    main()
