"""A small world for the command line: data files, and one finished run to look at."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli_world import QUICK, film_record, good, write_films


@dataclass(frozen=True)
class Films:
    """Two data files of people who share nothing."""

    pool: Path
    targets: Path

    @property
    def both(self) -> tuple[object, ...]:
        return ("--pool", self.pool, "--targets", self.targets)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    folder = tmp_path_factory.mktemp("films")
    pool = [film_record(name, items=4) for name in ("ada", "ben", "cleo")]
    targets = [film_record("dan"), film_record("eve")]
    return Films(
        write_films(folder / "pool_questions.json", pool), write_films(folder / "target_questions.json", targets)
    )


@pytest.fixture(scope="session")
def finished_run(films: Films, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        good("run", "lamp-2", *films.both, *QUICK, "--method", "mta", "--method", "base", "--out", folder)
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """The finished run, to break."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
