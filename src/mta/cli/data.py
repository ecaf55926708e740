"""`mta data`: fetch, describe, split, check and invent data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import note, progress_bars, show_json, show_table
from mta.errors import ConfigError
from mta.files import is_there
from mta.progress import Progress, Step

if TYPE_CHECKING:
    from mta.records import User

STATS = ("users", "people", "queries", "max", "min", "avg", "median")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    data = typer.Typer(no_args_is_help=True, help="Fetch, describe, split, check and invent data.")
    app.add_typer(data, name="data")
    command(data, "download", example="mta data download lamp-2 --split dev --out data/lamp")(download)
    command(data, "stats", example="mta data stats data/pool_questions.json --task lamp-2")(stats)
    command(
        data,
        "split",
        example="mta data split data/pool_questions.json --task lamp-2 --count 2 --history-length 16 "
        "--max-history-length 24 --out data/split",
    )(split)
    command(
        data,
        "check",
        example="mta data check --pool data/pool_questions.json --targets data/target_questions.json --task lamp-2",
    )(check)
    command(data, "personas", example="mta data personas --task lamp-2 --pool 8 --targets 2 --queries 3 --out data")(
        personas
    )


def download(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="lamp-1 to lamp-5, or their names in words.")],
    split: Annotated[Literal["train", "dev", "test"], typer.Option("--split", help="Test has no answers.")] = "dev",
    out: options.Out = Path("data/lamp"),
    base_url: Annotated[str | None, typer.Option("--base-url", help="A mirror with the official layout.")] = None,
    time_split: Annotated[bool, typer.Option("--time-split", help="LaMP's split by time, not by user.")] = False,
) -> None:
    """Fetch the official LaMP files; what is there stays, what was cut goes on."""
    from mta.data.download import OFFICIAL_URL, download_lamp

    with progress_bars() as progress, ExitStack() as stages:
        paths = download_lamp(
            tasks,
            split=split,
            folder=out,
            base_url=base_url or OFFICIAL_URL,
            time_split=time_split,
            on_progress=_stage_per_file(progress, stages),
        )
    for path in paths:
        typer.echo(path)


def _stage_per_file(progress: Progress, stages: ExitStack) -> Callable[[str, int, int | None], None]:
    """Return what shows one bar for each file."""
    steps: dict[str, Step] = {}

    def on_progress(name: str, done: int, total: int | None) -> None:
        if name not in steps:
            steps[name] = stages.enter_context(progress(name))
        if total:
            steps[name](done, total)

    return on_progress


def stats(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Data files.")],
    task: options.Task,
    skip_malformed: options.SkipMalformed = False,
    as_json: options.Json = False,
) -> None:
    """Count users, people and history items, as in the paper's Table 3.

    Users of a file are not always different people: records of one person are found by their histories.
    """
    from mta.cli.loading import load_users
    from mta.data.people import rule_for
    from mta.data.stats import history_stats
    from mta.tasks import get_task

    found = get_task(task)
    rule = rule_for(found.task_id)
    rows = [(file, history_stats(load_users(file, found, skip_malformed=skip_malformed), rule=rule)) for file in files]
    if as_json:
        show_json([{"file": str(file), "task": found.task_id, **asdict(row)} for file, row in rows])
        return
    cells = [
        (r.users, r.people, r.queries, r.max_items, r.min_items, f"{r.mean_items:.2f}", f"{r.median_items:g}")
        for _, r in rows
    ]
    head = ("file", "task", *STATS)
    show_table(head, [(file.name, found.task_id, *row) for (file, _), row in zip(rows, cells, strict=True)])


def split(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Data file with all users.")],
    task: options.Task,
    out: options.Out,
    count: Annotated[int, typer.Option("--count", min=1, help="Target users to draw.")] = 100,
    history_length: Annotated[
        int | None,
        typer.Option(
            "--history-length", min=1, help="History items of a target; the paper's for the task, by default."
        ),
    ] = None,
    max_history_length: Annotated[
        int | None, typer.Option("--max-history-length", min=1, help="Allow longer histories of targets, up to this.")
    ] = None,
    golds: options.Golds = None,
    queries_per_user: options.QueriesPerUser = 0,
    skip_malformed: options.SkipMalformed = False,
    seed: options.Seed = 42,
    as_json: options.Json = False,
) -> None:
    """Draw target users and a pool that shares no person with them; write both in LaMP's raw form."""
    from mta.cli.loading import load_users
    from mta.data.lamp import write_lamp_files
    from mta.data.people import rule_for
    from mta.data.splits import build_split
    from mta.tasks import get_task

    found = get_task(task)
    _refuse_existing(out)
    users = load_users(file, found, golds=golds, skip_malformed=skip_malformed, queries_per_user=queries_per_user)
    made = build_split(
        users,
        history_length=history_length or _paper_length(found.task_id),
        max_history_length=max_history_length,
        count=count,
        seed=seed,
        rule=rule_for(found.task_id),
    )
    sides = {out / "pool_questions.json": made.pool, out / "target_questions.json": made.targets}
    write_lamp_files(sides, task_name=found.lamp_name)
    if as_json:
        show_json(asdict(made.report))
        return
    show_table(("what", "number"), [(name.replace("_", " "), value) for name, value in asdict(made.report).items()])
    note(f"written: {out / 'pool_questions.json'}, {out / 'target_questions.json'} and their outputs")


def _refuse_existing(folder: Path) -> None:
    """Refuse a folder that holds a pool or targets already: they may be somebody's only copy."""
    for side in ("pool", "target"):
        for kind in ("questions", "outputs"):
            if is_there(path := folder / f"{side}_{kind}.json"):
                raise ConfigError(f"{path} is there already and would be replaced; name another folder, or remove it")


def _paper_length(task_id: str) -> int:
    from mta.data.splits import PAPER_HISTORY_LENGTH

    if task_id not in PAPER_HISTORY_LENGTH:
        raise ConfigError(f"the paper has no history length for task {task_id}; give one with --history-length")
    return PAPER_HISTORY_LENGTH[task_id]


def check(
    pool: options.Pool,
    targets: options.Targets,
    task: options.Task,
    golds: options.Golds = None,
    queries_per_user: options.QueriesPerUser = 0,
    skip_malformed: options.SkipMalformed = False,
    as_json: options.Json = False,
) -> None:
    """Check that no target person is in the pool: by ids, by shared histories, by answers seen.

    Questions that stand in their own user's history, with the answer, are named but are no failure.
    """
    from mta.cli.loading import load_users
    from mta.data.people import rule_for
    from mta.data.splits import answers_in_own_history, check_disjoint, find_leaks
    from mta.tasks import get_task

    found = get_task(task)
    rule = rule_for(found.task_id)
    source = load_users(pool, found, skip_malformed=skip_malformed)
    served = load_users(targets, found, golds=golds, skip_malformed=skip_malformed, queries_per_user=queries_per_user)
    copied = answers_in_own_history(served)
    if as_json:
        show_json({**asdict(find_leaks(source, served, rule=rule)), "answers_in_own_history": copied})
    check_disjoint(source, served, rule=rule)
    if not as_json:
        typer.echo(f"no leak: {len(source)} pool users and {len(served)} target users are different people")
        _show_copied(served, copied)


def _show_copied(users: Sequence[User], copied: Sequence[tuple[str, str]]) -> None:
    from mta.data.checks import first_few

    asked = sum(len(user.queries) for user in users)
    names = f" ({first_few([query_id for _, query_id in copied])})" if copied else ""
    typer.echo(f"{len(copied)} of {asked} target questions stand in their own user's history with the answer{names}")


def personas(
    task: options.Task,
    out: options.Out,
    pool: Annotated[int, typer.Option("--pool", min=1, help="People for a bank.")] = 24,
    targets: Annotated[int, typer.Option("--targets", min=1, help="People to serve.")] = 8,
    queries: Annotated[int, typer.Option("--queries", min=1, help="Questions asked of each target.")] = 12,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Invent people with known tastes, and the best score that anybody could reach on them."""
    from mta.data.personas import write_personas
    from mta.tasks import get_task

    _refuse_existing(out)
    _, served = write_personas(
        out, task_id=get_task(task).task_id, pool=pool, targets=targets, target_queries=queries, seed=seed
    )
    truth = {"best_score": dict(served.best_score), "group_score": dict(served.group_score)}
    if as_json:
        show_json(truth)
        return
    show_table(
        ("metric", "knows everybody's taste", "knows the group only"),
        [(name, f"{value:.3f}", f"{served.group_score[name]:.3f}") for name, value in served.best_score.items()],
    )
    note(f"written: {out}")
