"""Two processes never write into one folder at once; a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mta.errors import StorageError
from mta.folder_lock import LOCK, alone_in_folder, sole_use

HOLDER = """
import sys, time
from pathlib import Path
from mta.folder_lock import sole_use
with sole_use(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds a folder until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    process = hold(tmp_path)
    wanted = rf"{tmp_path} is in use.*wait until it has ended.*or choose another"
    with pytest.raises(StorageError, match=wanted), sole_use(tmp_path):
        pass
    process.communicate()
    assert list(tmp_path.iterdir()) == []
    with sole_use(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process = hold(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK).exists(), "nobody could take it away"
    with sole_use(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_half_made_is_swept_away(tmp_path: Path) -> None:
    for name in (".a.json.12-ab12cd34.tmp", ".hidden", "kept.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".b.1-aa.tmp").touch()
    with sole_use(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".hidden", "kept.tmp", "below", LOCK}
    assert (tmp_path / "below" / ".b.1-aa.tmp").exists(), "somebody may be writing there"


def test_calls_of_one_process_are_kept_apart_as_well(tmp_path: Path) -> None:
    @alone_in_folder
    def work(depth: int, folder: Path) -> int:
        return work(depth - 1, folder) if depth else len(list(folder.iterdir()))

    assert work(0, tmp_path) == work(0, folder=tmp_path) == 1
    with pytest.raises(StorageError, match="in use"):
        work(1, tmp_path)


def test_a_new_folder_goes_again_when_the_work_fails_before_anything_is_in_it(tmp_path: Path) -> None:
    @alone_in_folder
    def fail(folder: Path, *, leaving: bool) -> None:
        if leaving:
            (folder / "kept").touch()
        raise RuntimeError("stop")

    for leaving in (False, True):
        with pytest.raises(RuntimeError, match="stop"):
            fail(tmp_path / "new", leaving=leaving)
        assert (tmp_path / "new").exists() == leaving


def test_an_error_inside_is_passed_on_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), sole_use(tmp_path):
        open(tmp_path / "none").close()
