"""What a folder of results holds, so that no run, sweep or growth replaces the results of another kind.

Each of them may be called again on its own folder: it goes on where it was, and what was measured with the same
settings stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mta.config import changed_settings
from mta.errors import ConfigError, DataError
from mta.files import is_there, read_json

log = logging.getLogger(__name__)

CONFIG = "config.json"
SCORES = "scores.json"
GROWTH = "growth.json"
SIGNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"run": (CONFIG,), "growth": (GROWTH, "mta-all-linear"), "sweep": ("points", SCORES)}
)
"""Kind of results -> what shows that a folder holds them, the surest first."""
FREE = ("methods", "judged", "seeds", "once", "engine", "device")
"""Settings that do not change a row of a table: rows and seeds may be added, and speed may change."""


def refuse_other_results(folder: Path, kind: str) -> None:
    """Check that a folder is empty, or holds results of this kind.

    Raises:
        ConfigError: it holds those of another kind.
    """
    held = next((name for name, signs in SIGNS.items() if any(is_there(folder / sign) for sign in signs)), kind)
    if held != kind:
        raise ConfigError(f"{folder} holds the results of a {held}, which would be replaced; choose another folder")


def repeated_seeds(folder: Path) -> list[int]:
    """Return the seeds under which the run in a folder was repeated; [] for a plain run or none."""
    config = read_earlier(folder / CONFIG).get("config")
    seeds = config.get("seeds") if isinstance(config, dict) else None
    return list(seeds) if isinstance(seeds, list) else []


def refuse_repeats(folder: Path) -> None:
    """Check that a run has adapters and answers of its own, not one set for each of several seeds.

    Raises:
        ConfigError: it has several.
    """
    if seeds := repeated_seeds(folder):
        raise ConfigError(
            f"{folder} holds a run repeated under the seeds {', '.join(map(str, seeds))}, each with users of its own; "
            f"give one of them, for example {folder / f'seed-{seeds[0]}'}"
        )


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a row of a table."""
    return {name: value for name, value in settings.items() if name not in FREE}


def read_earlier(path: Path) -> dict[str, Any]:
    """Read back what an earlier call wrote; {} where there is nothing or it is damaged (said in the log)."""
    try:
        found = read_json(path) if is_there(path) else {}
    except DataError as error:
        log.warning("going on without %s: %s", path.name, error)
        found = {}
    return found if isinstance(found, dict) else {}


def are_of(settings: Mapping[str, Any], earlier: Mapping[str, Any], *, where: Path) -> bool:
    """Tell whether earlier results were made with these settings; if not, the log says what differs."""
    card = earlier.get("run")
    known = card.get("settings") if isinstance(card, dict) else None
    if not isinstance(known, dict):
        return False
    if changed := changed_settings(deciding(known), deciding(settings)):
        log.warning("%s holds results of other settings, which will be replaced: %s", where, ", ".join(changed))
    return not changed
