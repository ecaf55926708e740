"""`mta models`: the short names, and which of them can be used here right now."""

from __future__ import annotations

import typer

from mta.cli import options
from mta.cli.command import command
from mta.cli.display import show_json, show_table
from mta.errors import ModelError
from mta.models import MODELS, ModelName, find_package_file


def register(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "models", example="mta models --json")
    def models(as_json: options.Json = False) -> None:
        """List the short names of base models and encoders, and whether they are here.

        Anything else is a hub id or the path of a folder.
        """
        rows = [_row(entry) for table in MODELS.values() for entry in table.values()]
        if as_json:
            show_json(rows)
            return
        shown = ("kind", "name", "available", "licence", "size", "note")
        show_table(shown, [[row[name] for name in shown] for row in rows])


def _row(entry: ModelName) -> dict[str, str]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "source": entry.hub_id or entry.package or "made in code",
        "available": availability(entry),
        "licence": entry.licence,
        "size": entry.size,
        "note": entry.note,
        "install": entry.install,
    }


def availability(entry: ModelName) -> str:
    """Say whether a model can be loaded without fetching anything: "yes", or what it needs."""
    if entry.source == "code":
        return "yes"
    if entry.source == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = isinstance(try_to_load_from_cache(str(entry.hub_id), "config.json"), str)
        return "yes (cached)" if cached else "to fetch from the hub"
    return "yes" if _has_package(entry) else f"no: {entry.install}"


def _has_package(entry: ModelName) -> bool:
    from importlib.util import find_spec

    if entry.parts:
        return all(find_spec(package) for package, _ in entry.parts)
    try:
        find_package_file(entry)
    except ModelError:
        return False
    return True
