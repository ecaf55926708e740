"""Shared fixtures: where the real data is, when it is there; one thread for tiny matrices; no deadlines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("any machine", deadline=None)  # a busy one is no failure
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Compute on one thread: on matrices this small, handing work to a second one costs more than it saves."""
    torch.set_num_threads(1)


@pytest.fixture
def lamp_real() -> Path:
    """Folder of real LaMP-format data, $MTA_LAMP_DATA; the test is skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "lamp-real"
    folder = Path(os.environ.get("MTA_LAMP_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real data: set MTA_LAMP_DATA to a folder with LaMP_1 to LaMP_5")
    return folder


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MTA_CACHE", str(folder))
        yield folder
