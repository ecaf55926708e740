"""The program `mta`: its commands, and nothing else.

Heavy libraries are imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mta.cli import bank, data, demo, growth, models, report, run, score, serve, stages, sweep

app = typer.Typer(
    name="mta",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Personalized language models: one frozen base, a bank of LoRA adapters, a tiny adapter per person.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mta {version('mta')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


for part in (demo, models, data, bank, stages, score, run, sweep, growth, report, serve):
    part.register(app)


SPIN_COUNT = "1000"
"""How long an idle compute thread spins before it sleeps. With the library's default, a busy neighbour makes two
threads take twice as long as one; with this value a seventh longer, and an idle machine shows no difference
(docs/results/speed/threads.md)."""


def main() -> None:
    """Run the program."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when torch is loaded, which no command has done yet
    app()
