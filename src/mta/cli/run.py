"""`mta run`: all stages and methods on two data files, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import progress_bars, show_json, show_scores
from mta.cli.settings import RUN, Given, plan_for
from mta.errors import ConfigError
from mta.files import safe_name

if TYPE_CHECKING:
    from mta.tasks.task import Task

EXAMPLE = (
    "mta run lamp-2 --pool data/pool_questions.json --targets data/target_questions.json --base tiny-random "
    "--bank-size 3 --bank-epochs 1 --bank-min-updates 2 --max-items 4 --adapt-max-items 4 --out runs/try"
)


LAYOUT_METHOD = "mta"
"""The method whose adapters and answers the authors' file tree holds."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "run", settings=RUN, example=EXAMPLE)(run)


def run(
    task: options.TaskArgument,
    pool: options.Pool,
    targets: options.Targets,
    given: Given,
    golds: options.Golds = None,
    base: options.Base = "llama-3-8b-instruct",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="A row of the table; repeat it. 'usual' and 'tables' stand for sets; by default it is 'usual' and the "
            "preset's own.",
        ),
    ] = None,
    prior: Annotated[
        bool,
        typer.Option("--prior", help="Also show each method that scores labels corrected by the label prior."),
    ] = False,
    task_adapt: Annotated[
        Literal["none", "population"],
        typer.Option(
            "--task-adapt", help="What lies beneath oppu, oppu-k0, per-pcs: population makes them oppu-task ..."
        ),
    ] = "none",
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Repeat everything with N seeds, each with a bank of its own.")
    ] = 1,
    once: Annotated[
        list[str] | None,
        typer.Option("--once", help="With --seeds: a method that answers under the first seed only; repeat it."),
    ] = None,
    users: Annotated[int, typer.Option("--users", min=0, help="Only the first N targets; 0 means all.")] = 0,
    pool_users: Annotated[int, typer.Option("--pool-users", min=0, help="Only the first N of the pool.")] = 0,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Leave pool users out who are a target person, instead of stopping.")
    ] = False,
    skip_malformed: options.SkipMalformed = False,
    queries_per_user: options.QueriesPerUser = 0,
    preset: options.Preset = None,
    answers: Annotated[
        Literal["official", "released"] | None,
        typer.Option("--answers", help="Give, read and also score answers as the authors' scripts do; the preset's."),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = 0,
    layout: Annotated[
        Literal["reference"] | None, typer.Option("--layout", help="Write the authors' file tree as well.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; runs/TASK-BASE by default.")] = None,
    as_json: options.Json = False,
) -> None:
    """Build a bank, personalize every target with every method, answer, score, and write a report.

    Goes on where a killed call stopped. A changed setting never reuses a stale part.
    """
    from mta.tasks import get_task

    found = get_task(task)  # before the slow imports
    from mta.baselines.methods import SETS, beside_priors, fits, methods_for, over_task_adapter
    from mta.cli.loading import load_base, load_people
    from mta.evaluation.run import run as run_all
    from mta.evaluation.run_config import DEFAULT_METHODS
    from mta.presets import find_preset

    own = find_preset(preset or "recommended", found.task_id).method  # whatever the base model's size
    names = tuple(methods_for(found, method or (*DEFAULT_METHODS, own)))
    if task_adapt == "population":
        names = tuple(over_task_adapter(names))
    if prior:
        names = tuple(beside_priors(names, found))
    _check_layout(layout, names)
    _check_repeats(seeds, layout, once)
    _check_once(once or (), names, found)
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
    folder = out or Path("runs") / f"{found.task_id}-{safe_name(Path(base).name)}"
    with progress_bars() as progress:
        model = load_base(base, device=device, dtype=dtype, threads=threads, progress=progress)
        plan = plan_for(model, task_id=found.task_id, preset=preset, given=given)
        config = plan.run_config(found.task_id, base=base, device=device, dtype=dtype, methods=names)
        config = replace(config, answers=answers or config.answers)
        if seeds > 1:
            config = replace(
                config,
                seeds=tuple(range(plan.adapt.seed, plan.adapt.seed + seeds)),
                once=tuple(name for name in once or () if name in SETS or fits(name, found)),
            )
        result = run_all(people.pool, people.targets, config, folder, base=model, notes=people.notes, progress=progress)
    if layout:
        from mta.evaluation.reference_layout import write_reference_layout

        write_reference_layout(
            folder, folder / layout, pool=people.pool, targets=people.targets, base=model, method=LAYOUT_METHOD
        )
    if as_json:
        show_json(result.scores)
    else:
        show_scores(result.scores)
        typer.echo(f"report: {folder / 'report.html'}")


def _check_repeats(seeds: int, layout: str | None, once: Sequence[str] | None) -> None:
    if seeds > 1 and layout:
        raise ConfigError(
            f"--layout writes the files of one run, not of {seeds} repeated ones; leave --seeds out, or --layout"
        )
    if seeds == 1 and once:
        raise ConfigError(
            f"--once {once[0]} says who answers under the first of several seeds, and there is one; add --seeds, or "
            "leave --once out"
        )


def _check_once(once: Sequence[str], names: Sequence[str], task: Task) -> None:
    """Refuse a method that is no row of the table, though it could be one."""
    from mta.baselines.methods import SETS, find_method, fits

    for name in once:
        if name in SETS:
            continue
        find_method(name)
        if fits(name, task) and name not in names:
            raise ConfigError(
                f"--once {name} is no row of this table, which has {', '.join(names)}; leave it out, or add "
                f"--method {name}"
            )


def _check_layout(layout: str | None, names: Sequence[str]) -> None:
    if layout and LAYOUT_METHOD not in names:
        raise ConfigError(
            f"--layout writes the files of method {LAYOUT_METHOD!r}, which is not among {', '.join(names)}; "
            f"add --method {LAYOUT_METHOD}"
        )
