"""`mta growth`: what training and storage cost as users are added."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import progress_bars, show_json
from mta.cli.settings import RUN, Given, plan_for

EXAMPLE = (
    "mta growth lamp-2 --users 1 --users 2 --pool data/pool_questions.json --targets data/target_questions.json "
    "--base tiny-random --bank-size 3 --bank-epochs 1 --bank-min-updates 2 --max-items 4 --adapt-max-items 4 "
    "--out runs/growth"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "growth", settings=RUN, example=EXAMPLE)(growth)


def growth(
    task: options.TaskArgument,
    pool: options.Pool,
    targets: options.Targets,
    users: Annotated[
        list[int], typer.Option("--users", min=1, help="A number of users to read time and bytes off at; repeat it.")
    ],
    given: Given,
    golds: options.Golds = None,
    base: options.Base = "llama-3-8b-instruct",
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
    out: Annotated[Path | None, typer.Option("--out", help="Folder; runs/growth-TASK by default.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure training time and stored bytes against the number of users, for MTA and OPPU (figure 2 of the paper).

    Each is trained with adapters on all linear layers and on query and value alone. Goes on where a killed call
    stopped; further numbers of users can be added by calling it again.
    """
    from mta.tasks import get_task

    found = get_task(task)  # before the slow imports
    from mta.cli.loading import load_base, load_people
    from mta.evaluation.folders import GROWTH
    from mta.evaluation.growth import markdown_growth, measure_growth

    people = load_people(
        pool,
        targets,
        found,
        golds=golds,
        users=0,
        pool_users=pool_users,
        drop_leaks=drop_leaks,
        skip_malformed=skip_malformed,
        queries_per_user=queries_per_user,
    )
    folder = out or Path("runs") / f"growth-{found.task_id}"
    with progress_bars() as progress:
        model = load_base(base, device=device, dtype=dtype, threads=threads, progress=progress)
        plan = plan_for(model, task_id=found.task_id, preset=preset, given=given)
        config = plan.run_config(found.task_id, base=base, device=device, dtype=dtype, methods=("mta",))
        result = measure_growth(
            people.pool, people.targets, config, folder, users=users, base=model, notes=people.notes, progress=progress
        )
    if as_json:
        show_json(result)
    else:
        typer.echo(markdown_growth(result))
        typer.echo(f"points: {folder / GROWTH}")
