"""`mta sweep`: one setting varied, everything else equal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import progress_bars, show_json, show_scores
from mta.cli.settings import RUN, Given, plan_for

EXAMPLE = (
    "mta sweep lamp-2 --over top-k --value 1 --value 2 --pool data/pool_questions.json "
    "--targets data/target_questions.json --base tiny-random --bank-size 3 --bank-epochs 1 --bank-min-updates 2 "
    "--max-items 4 --adapt-max-items 4 --out runs/sweep"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "sweep", settings=RUN, example=EXAMPLE)(sweep)


def sweep(
    task: options.TaskArgument,
    over: Annotated[
        Literal["weight", "top-k", "rank", "bank-size"], typer.Option("--over", help="The setting that is varied.")
    ],
    pool: options.Pool,
    targets: options.Targets,
    given: Given,
    value: Annotated[
        list[float] | None,
        typer.Option("--value", help="A value of it; repeat it. By default those of the figure."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="The method whose scores are compared.")] = "mta",
    golds: options.Golds = None,
    base: options.Base = "llama-3-8b-instruct",
    users: Annotated[int, typer.Option("--users", min=0, help="Only the first N targets; 0 means all.")] = 0,
    pool_users: Annotated[int, typer.Option("--pool-users", min=0, help="Only the first N of the pool.")] = 0,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Leave pool users out who are a target person, instead of stopping.")
    ] = False,
    skip_malformed: options.SkipMalformed = False,
    queries_per_user: options.QueriesPerUser = 0,
    preset: options.Preset = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; runs/sweep-TASK-OVER by default.")] = None,
    as_json: options.Json = False,
) -> None:
    """Answer and score the targets' queries once for each value of one setting (figures 3 to 6 of the paper).

    Goes on where a killed call stopped; further values can be added by calling it again.
    """
    from mta.tasks import get_task

    found = get_task(task)  # before the slow imports
    from mta.cli.loading import load_base, load_people
    from mta.evaluation.sweep import run_sweep

    people = load_people(
        pool,
        targets,
        found,
        golds=golds,
        users=users,
        pool_users=pool_users,
        drop_leaks=drop_leaks,
        skip_malformed=skip_malformed,
        queries_per_user=queries_per_user,
    )
    folder = out or Path("runs") / f"sweep-{found.task_id}-{over}"
    with progress_bars() as progress:
        model = load_base(base, device=device, dtype=dtype, threads=threads, progress=progress)
        plan = plan_for(model, task_id=found.task_id, preset=preset, given=given)
        config = plan.run_config(found.task_id, base=base, device=device, dtype=dtype, methods=(method,))
        scores = run_sweep(
            people.pool,
            people.targets,
            config,
            folder,
            over=over,
            values=value or (),
            method=method,
            base=model,
            notes=people.notes,
            progress=progress,
        )
    if as_json:
        show_json(scores)
    else:
        show_scores(scores)
        typer.echo(f"scores: {folder / 'scores.json'}")
