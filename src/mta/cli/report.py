"""`mta report` and `mta export`: results and adapters out of run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import note
from mta.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "report", example="mta report runs/try --out report.html")(report)
    command(app, "export", example="mta export runs/try --user target-000 --to peft --out exported/target-000")(export)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Join the scores of several runs into one self-contained HTML page."""
    from mta.evaluation.report import write_report
    from mta.evaluation.scores import check_scores
    from mta.files import read_json

    scores = [check_scores(read_json(folder / "scores.json")) for folder in runs]
    card = {str(folder): run.get("run", {}) for folder, run in zip(runs, scores, strict=True)}
    write_report(out, scores=scores, run_card=card)
    typer.echo(out)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    user: options.OneUser,
    out: options.Out,
    to: Annotated[Literal["peft"], typer.Option("--to", help="Format of the adapter.")] = "peft",
    method: Annotated[
        str, typer.Option("--method", help="A method of the run that uses anchors or the user's own adapter.")
    ] = "mta",
) -> None:
    """Write a user's whole adapter, merged anchors and own part, as one plain LoRA."""
    from mta.evaluation.export import export_user
    from mta.lora.peft_format import WEIGHTS

    if (out / WEIGHTS).exists():
        raise ConfigError(f"{out} holds an adapter already; name another folder, or remove that one first")
    found = export_user(run, user, out, method=method)
    adapter = found.adapter
    if found.note:
        note(f"{user} was not adapted ({found.note}): these are the merged anchors alone, as in the run")
    typer.echo(f"{user}: rank {adapter.rank}, {adapter.parameters:,} values, {to} format, in {out}")
