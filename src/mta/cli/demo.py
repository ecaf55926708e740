"""`mta demo`: invented people with known tastes through the whole pipeline, without a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import progress_bars, show_json, show_scores, show_table
from mta.cli.settings import TINY, Plan, tiny_encoders
from mta.presets import find_preset

if TYPE_CHECKING:
    from mta.data.personas import Personas


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demonstration does; chosen so that it takes minutes on two cores."""

    pool: int = 16
    pool_history: int = 12
    targets: int = 4
    target_history: int = 12
    queries: int = 6
    bank_size: int = 4
    bank_epochs: int = 2
    bank_lr: float = 1e-3
    adapt_epochs: int = 3
    adapt_lr: float = 2e-3
    methods: tuple[str, ...] = ("base", "majority", "nearest", "population", "merged-only", "mta")


SIZE = DemoSize()
TINY_SIZE = DemoSize(
    pool=6, pool_history=5, targets=2, target_history=5, queries=2, bank_size=2, bank_epochs=1, adapt_epochs=1
)
"""For the random model, which is there to try the plumbing."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "demo", example="mta demo --base tiny-random")(demo)


def demo(
    base: options.Base = "smollm2-135m",
    task: options.Task = "lamp-4",
    out: options.Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the invented people.")] = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
    as_json: options.Json = False,
) -> None:
    """Invent people, build a bank, personalize, answer, score, and report, in minutes and without a network.

    The people's tastes are known, so the best score that anybody could reach is known as well.
    """
    from mta.baselines.methods import fits
    from mta.cli.loading import load_base
    from mta.data.personas import write_personas
    from mta.evaluation.run import run as run_all
    from mta.tasks import get_task

    found = get_task(task)
    size = TINY_SIZE if base == TINY else SIZE
    plan = demo_plan(found.task_id, base, size)
    methods = tuple(name for name in size.methods if fits(name, found))
    config = plan.run_config(found.task_id, base=base, device=device, dtype=dtype, methods=methods)
    with progress_bars() as progress:
        model = load_base(base, device=device, dtype=dtype, threads=threads, progress=progress)
        pool, targets = write_personas(
            out / "data",
            task_id=found.task_id,
            pool=size.pool,
            targets=size.targets,
            pool_history=size.pool_history,
            target_history=size.target_history,
            target_queries=size.queries,
            seed=seed,
        )
        notes = {"data": "invented people", "best possible score": dict(targets.best_score)}
        result = run_all(pool.users, targets.users, config, out, base=model, notes=notes, progress=progress)
    if as_json:
        show_json({**result.scores, "best_score": dict(targets.best_score)})
        return
    show_scores(result.scores)
    _show_best(targets)
    typer.echo(f"report: {out / 'report.html'}")


def demo_plan(task_id: str, base: str, size: DemoSize) -> Plan:
    """Return the settings of the demonstration: the preset for small models at the demonstration's size."""
    preset = find_preset("small", task_id)
    bank = replace(
        preset.bank,
        anchors=replace(preset.bank.anchors, bank_size=size.bank_size),
        train=replace(preset.bank.train, epochs=size.bank_epochs, lr=size.bank_lr, min_updates=0),
    )
    if base == TINY:
        bank = tiny_encoders(replace(bank, anchors=replace(bank.anchors, min_history=0)))
    adapt = replace(preset.adapt, epochs=size.adapt_epochs, lr=size.adapt_lr)
    return Plan(bank=bank, match=bank.match, merge=preset.merge, adapt=adapt)


def _show_best(targets: Personas) -> None:
    rows = [
        (metric, f"{targets.group_score[metric]:.3f}", f"{best:.3f}") for metric, best in targets.best_score.items()
    ]
    title = "What could be reached: these people's tastes are known"
    show_table(("metric", "by who knows their group", "by who knows everybody's taste"), rows, title=title)
