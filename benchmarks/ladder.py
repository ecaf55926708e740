"""The way from the paper's settings to the recommended ones on target users, with every rival and control beside it.

    python benchmarks/ladder.py --data DIR --task lamp-2 --work RUNS --out docs/results/personalization/lamp-2

Every rung is merge-then-adapt under settings nearer to the preset `recommended`; rivals and controls stand on the bank
of the last one. All answer the same questions, so every two rows can be compared person by person. Nothing is chosen
here. Writes `scores.json`, `table.md` and `table.csv` as rows come; a killed call goes on.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mta.base_model import BaseModel
from mta.baselines.methods import find_method, fits
from mta.config import PromptConfig
from mta.data.people import person_names, rule_for
from mta.data.read import read_users
from mta.data.splits import drop_leaks
from mta.evaluation.answers import method_record
from mta.evaluation.run import open_run
from mta.evaluation.run_card import run_card
from mta.evaluation.run_config import RunConfig
from mta.evaluation.scores import MethodRecord, build_scores
from mta.evaluation.slices import slice_scores, usual_partitions
from mta.evaluation.table import csv_table, markdown_comparisons, markdown_slices, markdown_table
from mta.files import write_json, write_text
from mta.personalize import Resources, match_users
from mta.presets import Preset, find_preset
from mta.records import User
from mta.tasks import get_task
from on_real_users import begin, parser_of

log = logging.getLogger(__name__)

PROMPTS = PromptConfig(history_words=40, input_words=90, max_tokens=768)
"""Shorter texts than the presets', to save a CPU's time; the same for all rows."""
CORE_LR = 1e-2
"""Of a matrix between the factors of what lies beneath, which starts at zero and is small."""
PAUSE_S = 300
"""Seconds between two writings of what there is so far."""
JUDGED = "mta-blended+pooled"
FINAL_ROWS = (
    *("mta", "mta-blended", "mta+pooled", JUDGED, "swapped-blended", "swapped-blended+pooled"),
    *("merged-only", "adapt-only", "mta-evidence", "averaged-anchors", "uniform-weights", "random-anchors"),
    *("population", "population-adapt", "population-blended", "population-blended+pooled"),
    *("base", "majority", "classical-pool", "classical", "no-model", "rag-1", "rag-3", "rag-5"),
    *("oppu", "oppu-task", "per-pcs", "per-pcs-task", "proper", "rag+mta"),
)
"""Of the last rung, those that matter most first."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One group of rows under the same settings."""

    settings: Preset
    rows: Mapping[str, str] = field(default_factory=dict)
    """Name in the table -> method."""


def rungs(task_id: str) -> dict[str, Rung]:
    """Return the steps from the paper to the recommended settings, the last first: it has most rows."""
    paper, small, last = (find_preset(name, task_id) for name in ("paper", "small", "recommended"))
    encoder = small.bank.anchors.encoder
    readable = replace(  # the paper's selection encoder is not among the small ones at hand
        paper.bank,
        anchors=replace(paper.bank.anchors, encoder=encoder),
        match=replace(paper.bank.match, encoder=encoder),
    )
    beneath = replace(
        small.bank, population_beneath=last.bank.population_beneath, population_train=last.bank.population_train
    )
    thinner = replace(last.bank, train=replace(last.bank.train, rank=4, alpha=8.0))
    core = replace(last, bank=thinner, adapt=replace(last.adapt, form="core", lr=CORE_LR))
    return {
        "recommended": Rung(last, {name: name for name in FINAL_ROWS}),
        "core": Rung(core, {"mta-core": "mta", "mta-core-blended+pooled": JUDGED}),
        "paper": Rung(replace(paper, bank=readable), {"paper-mta": "mta", "mta-paper-merged-only": "merged-only"}),
        "small": Rung(small, {"mta-small": "mta", "mta-small-merged-only": "merged-only"}),
        "beneath": Rung(replace(small, bank=beneath), {"mta-small-over-population": "mta"}),
    }


def run_config(settings: Preset, task_id: str, options: argparse.Namespace) -> RunConfig:
    """Return a rung's settings of a whole run."""
    return RunConfig(
        task_id=task_id,
        base=options.base,
        dtype=options.dtype,
        bank=replace(settings.bank, prompts=replace(PROMPTS, history_k=settings.bank.prompts.history_k)),
        top_k=settings.bank.match.top_k,
        merge=settings.merge,
        adapt=settings.adapt,
    )


@dataclass(frozen=True, slots=True)
class Done:
    """What there is so far."""

    resources: Resources
    """Of the last rung."""
    config: RunConfig
    records: Sequence[MethodRecord]


def climb(
    pool: Sequence[User], targets: Sequence[User], options: argparse.Namespace, base: BaseModel
) -> Iterator[Done]:
    """Answer with one row after the other; yield what there is after each."""
    task, records = get_task(options.task), []
    first: tuple[Resources, RunConfig] | None = None
    for name, rung in rungs(options.task).items():
        config = run_config(rung.settings, options.task, options)
        folder = options.work / options.task / name
        resources = open_run(pool, targets, config, folder, base=base, work=options.work / options.task / "trainings")
        first = first or (resources, config)
        for row, method in rung.rows.items():
            if not fits(method, task) or (options.rows and row not in options.rows):
                continue
            found = method_record(method, find_method(method), targets, resources, folder)
            records.append(replace(found, name=row))
            log.warning("%s is there", row)
            yield Done(*first, tuple(records))


def scores_of(done: Done, targets: Sequence[User], seconds: float, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Score all rows, compare the recommended one with each, and cut the questions by what may matter."""
    task, bank = done.resources.task, done.resources.need_bank()
    people = person_names(targets, rule=rule_for(task.task_id))
    names = {record.name for record in done.records}
    scores = build_scores(
        task.task_id,
        done.records,
        base=done.config.base,
        seeds=[done.config.adapt.seed],
        metrics=task.metrics,
        labels=task.labels,
        people=people,
        judged=JUDGED if JUDGED in names else None,
        comparisons=[pair for pair in (("mta", "population-adapt"), ("mta", "paper-mta")) if names.issuperset(pair)],
    )
    matches = match_users(targets, done.resources)
    partitions = usual_partitions(
        task,
        targets,
        pool=done.resources.pool,
        anchors=[user for user in done.resources.pool if user.user_id in bank.anchor_ids],
        similarities={name: match.similarities[0] for name, match in matches.items()},
    )
    slices = slice_scores(done.records, partitions, metrics=task.metrics, labels=task.labels, people=people)
    scores["run"] = {**notes, **run_card(done.config, [done.resources], targets, scores, seconds)}
    return {**scores, "slices": slices}


def write_results(scores: Mapping[str, Any], folder: Path) -> None:
    """Write the scores and their tables."""
    write_json(folder / "scores.json", scores)
    parts = [markdown_table(scores), markdown_comparisons(scores), markdown_slices(scores)]
    write_text(folder / "table.md", "\n\n".join(part for part in parts if part) + "\n")
    write_text(folder / "table.csv", csv_table(scores))


def main() -> None:
    """Run what is asked for."""
    parser = parser_of(__doc__)
    every = [row for rung in rungs("lamp-2").values() for row in rung.rows]
    parser.add_argument("--row", dest="rows", action="append", choices=every, help="only these; repeat it")
    options = parser.parse_args()
    base = begin(options)
    started = time.monotonic()
    task = get_task(options.task)
    folder = options.data / task.lamp_name
    targets = read_users(folder / "target_questions.json", task=task).users
    everybody = read_users(folder / "pool_questions.json", task=task).users
    pool, _ = drop_leaks(everybody, targets, rule=rule_for(task.task_id))
    notes = {"command": f"python benchmarks/ladder.py --data DATA --task {options.task} --base {options.base}"}
    if len(pool) < len(everybody):
        notes["left out of the pool"] = f"{len(everybody) - len(pool)} users who are a target person or hold an answer"
    written, latest = started, None
    for latest in climb(pool, targets, options, base):
        if (now := time.monotonic()) - written > PAUSE_S:
            write_results(scores_of(latest, targets, now - started, notes), options.out)
            written = time.monotonic()
    if latest:
        write_results(scores_of(latest, targets, time.monotonic() - started, notes), options.out)


if __name__ == "__main__":
    main()
