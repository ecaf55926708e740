"""`mta report` and `mta export`: results and adapters out of run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import note
from mta.errors import ConfigError, DataError, NotFound
from mta.files import is_there

if TYPE_CHECKING:
    from mta.records import Prediction

ANSWERS = "predictions.jsonl"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "report", example="mta report runs/try --out report.html")(report)
    command(app, "export", example="mta export runs/try --user target-000 --to peft --out exported/target-000")(export)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, one a task.")],
    sweep: Annotated[
        list[Path] | None, typer.Option("--sweep", help="Folder of a sweep, for figures 3 to 6; repeat it.")
    ] = None,
    growth: Annotated[
        list[Path] | None, typer.Option("--growth", help="A growth.json, for figure 2; repeat it.")
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option("--user", help="Show all answers to this user side by side; repeat it.")
    ] = None,
    targets: Annotated[
        Path | None, typer.Option("--targets", help="Data file of the users, to show questions and histories too.")
    ] = None,
    plots: Annotated[Path | None, typer.Option("--plots", help="Folder for all plots as PNG and SVG.")] = None,
    tables: Annotated[Path | None, typer.Option("--tables", help="Folder for all tables as Markdown and CSV.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Join runs, sweeps and growth into one self-contained page: the paper's tables and figures with these numbers."""
    from mta.evaluation.figures import growth_charts, sweep_charts
    from mta.evaluation.report import join_cards, write_report
    from mta.evaluation.report_files import write_plots, write_tables
    from mta.files import read_json

    scores = [_scores_of_run(folder) for folder in runs]
    _require_once("run", [str(run["task"]) for run in scores])
    growths = [read_json(file) for file in growth or ()]
    charts = [chart for one in growths for chart in growth_charts(one)]
    sweeps = [read_json(folder / "scores.json") for folder in sweep or ()]
    charts += [chart for one in sweeps for chart in sweep_charts(one)]
    _require_once("figure", [chart.name for chart in charts])
    cases = _cases(runs, user or (), targets)
    if plots:
        write_plots(plots, scores=scores, charts=charts)
    if tables:
        write_tables(tables, scores=scores)
    places = [*runs, *(sweep or ()), *(growth or ())]
    cards = {str(place): one.get("run", {}) for place, one in zip(places, [*scores, *sweeps, *growths], strict=True)}
    write_report(out, scores=scores, run_card=join_cards(cards), charts=charts, cases=cases)
    typer.echo(out)


def _scores_of_run(folder: Path) -> dict[str, Any]:
    from mta.evaluation.scores_file import check_scores
    from mta.files import read_json

    scores = check_scores(read_json(folder / "scores.json"))
    if "sweep" in scores:
        raise ConfigError(f"{folder} is a sweep, whose rows are points and no methods; give it as --sweep {folder}")
    return scores


def _require_once(what: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"more than one {what} {twice}; a report holds one of each: make a report for the other one")


def _cases(runs: Sequence[Path], users: Sequence[str], targets: Path | None) -> list[dict[str, Any]]:
    """Answers side by side, of the users who are named; without names a report holds nobody's text."""
    from mta.cli.loading import load_users
    from mta.evaluation.cases import build_cases
    from mta.evaluation.scores_file import check_scores
    from mta.files import read_json
    from mta.tasks import get_task

    cases: list[dict[str, Any]] = []
    shown: set[str] = set()
    for folder in runs if users else ():
        scores = check_scores(read_json(folder / "scores.json"))
        predictions = _answers(folder, scores)
        known = {row.user_id for rows in predictions.values() for row in rows}
        here = [user for user in users if user in known]
        task = get_task(scores["task"])
        people = load_users(targets, task) if targets and here else ()
        unknown = set(here) - {one.user_id for one in people} if people else set()
        if unknown:
            raise NotFound(f"user {min(unknown)!r} is not in {targets}; give the run's targets, or leave it out")
        cases += build_cases(predictions, task=task, people=people, users=here) if here else []
        shown.update(here)
    missing = [user for user in users if user not in shown]
    if missing:
        raise NotFound(f"user {missing[0]!r} was asked nothing in {', '.join(map(str, runs))}; check --user")
    return cases


def _answers(folder: Path, scores: Mapping[str, Any]) -> dict[str, list[Prediction]]:
    """Read the answers behind scores; of repeated runs those of the first seed, which every method has."""
    from mta.evaluation.predictions_file import read_predictions

    repeats = ((scores.get("run") or {}).get("settings") or {}).get("seeds")
    place = folder / f"seed-{repeats[0]}" if repeats else folder
    if not is_there(place / ANSWERS):
        raise DataError(f"{place} has no {ANSWERS}, so no answers can be shown; give the folder of the run itself")
    return read_predictions(place / ANSWERS)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or with --bank that of `mta adapt --out`.")],
    user: options.OneUser,
    out: options.Out,
    bank: Annotated[
        Path | None, typer.Option("--bank", help="The bank beneath the adapters, if it is not the run's own.")
    ] = None,
    to: Annotated[Literal["peft"], typer.Option("--to", help="Format of the adapter.")] = "peft",
    method: Annotated[
        str, typer.Option("--method", help="A method of the run that uses anchors or the user's own adapter.")
    ] = "mta",
) -> None:
    """Write a user's whole adapter, merged anchors and own part, as one plain LoRA."""
    from mta.evaluation.export import export_user
    from mta.lora.peft_format import WEIGHTS

    if is_there(out / WEIGHTS):
        raise ConfigError(f"{out} holds an adapter already; name another folder, or remove that one first")
    found = export_user(run, user, out, method=method, bank_folder=bank)
    adapter = found.adapter
    if found.note:
        note(f"{user} was not adapted ({found.note}): these are the merged anchors alone, as in the run")
    typer.echo(f"{user}: rank {adapter.rank}, {adapter.parameters:,} values, {to} format, in {out}")
