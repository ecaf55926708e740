"""`mta evaluate`: scores of answers in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import note, show_json, show_scores

if TYPE_CHECKING:
    from mta.tasks.task import Task


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "evaluate", example="mta evaluate --predictions predictions.jsonl --task lamp-2")(evaluate)


def evaluate(
    predictions: Annotated[
        Path, typer.Option("--predictions", help="Answers: one JSON object a line, or LaMP's official form.")
    ],
    task: options.Task,
    golds: options.Golds = None,
    targets: Annotated[
        Path | None, typer.Option("--targets", help="Data file of the users, to know whose records are one person.")
    ] = None,
    skip_malformed: options.SkipMalformed = False,
    judged: Annotated[
        str | None,
        typer.Option("--judged", help="Method that is compared with every other one; mta where it is there."),
    ] = None,
    base: Annotated[str, typer.Option("--base", help="Name of the base model, for the heading.")] = "not named",
    out: options.OutFile = None,
    as_json: options.Json = False,
) -> None:
    """Score answers with the official metrics, with intervals over people and paired comparisons."""
    from mta.evaluation.predictions_file import read_predictions
    from mta.evaluation.run_config import JUDGED
    from mta.evaluation.scores import MethodRecord, build_scores
    from mta.files import write_json
    from mta.tasks import get_task

    found = get_task(task)
    methods = read_predictions(predictions, golds=golds)
    scores = build_scores(
        found.task_id,
        [MethodRecord(name=name, predictions=rows) for name, rows in methods.items()],
        base=base,
        seeds=[],
        metrics=found.metrics,
        labels=found.labels,
        people=_people(targets, found, skip_malformed=skip_malformed) if targets else None,
        judged=judged or (JUDGED if JUDGED in methods else None),
    )
    if targets is None:
        note("every user id counts as a person of its own; with --targets FILE one person's records count as one")
    if out:
        write_json(out, scores)
    if as_json:
        show_json(scores)
    else:
        show_scores(scores)


def _people(path: Path, task: Task, *, skip_malformed: bool) -> dict[str, str]:
    """Return user id -> person, and query id -> person for answers that name no user."""
    from mta.cli.loading import load_users
    from mta.data.people import find_people, rule_for

    users = load_users(path, task, skip_malformed=skip_malformed)
    groups = find_people(users, rule=rule_for(task.task_id))
    person = {user_id: group[0] for group in groups for user_id in group}
    return {query.query_id: person[user.user_id] for user in users for query in user.queries} | person
