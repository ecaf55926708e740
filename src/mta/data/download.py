"""Fetching the official LaMP files: resumable, checked, and never half a file under the final name.

A download grows in `NAME.part` beside its place. When it is complete (size as announced, begins like
JSON, is JSON) it is renamed. A download that was cut goes on where it stopped. The official server
answers some wrong addresses with status 200 and a web page; that is noticed and refused.

Example:
    >>> download_lamp(["lamp-2"], split="dev", folder=Path("data/lamp"))
    [PosixPath('data/lamp/LaMP_2/dev_questions.json'), PosixPath('data/lamp/LaMP_2/dev_outputs.json')]
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import requests

from mta.data.checks import looks_like_html, refuse_html
from mta.errors import DataError, MtaError, StorageError, unknown_name
from mta.files import folder_if_used, read_json, storage_errors
from mta.tasks import get_task

OFFICIAL_URL = "https://ciir.cs.umass.edu/downloads/LaMP"
FOLDERS: Mapping[str, str] = {
    "lamp-1": "LaMP_1",
    "lamp-2": "LaMP_2/new",
    "lamp-3": "LaMP_3",
    "lamp-4": "LaMP_4",
    "lamp-5": "LaMP_5",
}
"""Task -> folder on the server. Plain LaMP_2 is an older task of that name (news categories)."""
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("questions", "outputs"),
    "dev": ("questions", "outputs"),
    "test": ("questions",),
}
"""Split -> its files; the test answers are not published."""
BLOCK_BYTES = 1 << 16
CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<total>\d+|\*)")

Progress = Callable[[str, int, int | None], None]
"""Called with (file name, bytes so far, bytes in all or None where the server does not say)."""


def download_lamp(
    task_ids: Sequence[str],
    *,
    split: str,
    folder: Path,
    base_url: str = OFFICIAL_URL,
    time_split: bool = False,
    on_progress: Progress | None = None,
    timeout_s: float = 60.0,
    attempts: int = 5,
) -> list[Path]:
    """Download one split of LaMP tasks; files that are there and valid are not fetched again.

    Files go to `folder/LaMP_N/SPLIT_questions.json` (and `_outputs.json`), those of the time-based
    split to `folder/time/LaMP_N/`.

    Args:
        task_ids: for example ["lamp-2", "lamp-4"], or any other name of these tasks.
        split: "train", "dev" or "test" (which has no outputs).
        folder: where to put them; made if missing.
        base_url: a mirror with the same layout.
        time_split: fetch LaMP's split by time instead of by user.
        on_progress: called after every block.
        timeout_s: seconds without a byte after which a connection counts as lost.
        attempts: connections tried for each file before giving up.

    Returns:
        The paths of the files, questions before outputs, in the order of `task_ids`.

    Raises:
        NotFound: there is no such task or split.
        StorageError: the server cannot be reached or refuses, the connection was lost, or the disk is full.
        DataError: what came is not JSON.
    """
    wanted = [_places(task_id, split, folder, base_url, time_split=time_split) for task_id in task_ids]
    paths = []
    for url, path in (place for places in wanted for place in places):
        if not is_complete(path):
            with folder_if_used(path.parent):
                _download(_Job(url, path, on_progress, timeout_s), attempts)
        paths.append(path)
    return paths


def _places(task_name: str, split: str, folder: Path, base_url: str, *, time_split: bool) -> list[tuple[str, Path]]:
    task_id = get_task(task_name).task_id
    if task_id not in FOLDERS:
        raise unknown_name("task of LaMP", task_name, FOLDERS)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    root = f"{base_url.rstrip('/')}/time" if time_split else base_url.rstrip("/")
    home = (folder / "time" if time_split else folder) / FOLDERS[task_id].split("/")[0]
    names = [f"{split}_{part}.json" for part in SPLITS[split]]
    return [(f"{root}/{FOLDERS[task_id]}/{split}/{name}", home / name) for name in names]


def is_complete(path: Path) -> bool:
    """Whether a file is there and is JSON."""
    if not path.is_file():
        return False
    try:
        read_json(path)
    except MtaError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to fetch."""

    url: str
    path: Path
    on_progress: Progress | None
    timeout_s: float

    @property
    def part(self) -> Path:
        """Where the file grows."""
        return self.path.with_name(self.path.name + ".part")


def _download(job: _Job, attempts: int) -> None:
    for attempt in range(1, attempts + 1):
        try:
            finished = _fetch(job)
        except requests.RequestException as error:
            if attempt == attempts:
                raise _lost(job, str(error)) from error
            continue
        if finished:
            _put_in_place(job)
            return
    raise _lost(job, "the server closed the connection early")


def _lost(job: _Job, reason: str) -> StorageError:
    have = _size(job.part)
    kept = f"{have} bytes are kept and the next run goes on from there" if have else "nothing was fetched"
    return StorageError(f"cannot download {job.url}: {reason}; {kept}; check the network and run it again")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch(job: _Job) -> bool:
    """Fetch what is missing of one file; return whether all of it is there now."""
    have = _size(job.part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(job.url, headers=headers, stream=True, timeout=job.timeout_s) as response:
        if have and response.status_code == 416:
            return _is_all_there(job, response, have)
        if response.status_code not in (200, 206):
            raise StorageError(
                f"cannot download {job.url}: got HTTP status {response.status_code} ({response.reason}); wanted 200; "
                "check the address and that the task has this split, or try again later"
            )
        start, total = _extent(response)
        if start not in (0, have):
            return _start_over(job)
        _append(job, response, start=start, total=total)
    return total is None or _size(job.part) == total


def _is_all_there(job: _Job, response: requests.Response, have: int) -> bool:
    """Judge a "range not satisfiable": the part is the whole file, or it belongs to another one and is thrown away."""
    _, total = _extent(response)
    return True if total == have else _start_over(job)


def _start_over(job: _Job) -> bool:
    with storage_errors(job.part, "remove"):
        job.part.unlink()
    return False


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Return (first byte that comes, bytes of the whole file where the server says)."""
    if response.status_code == 200:
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() and not encoded else None
    found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    total = found["total"] if found else "*"
    return int(found["start"] or 0) if found else -1, None if total == "*" else int(total)


def _append(job: _Job, response: requests.Response, *, start: int, total: int | None) -> None:
    blocks = response.iter_content(BLOCK_BYTES)
    first = next(blocks, b"")
    if start == 0 and looks_like_html(first[:256]):
        raise _web_page(job)
    done = start
    with storage_errors(job.part, "write"):
        stream = job.part.open("ab" if start else "wb", buffering=0)
    with stream:  # not all under storage_errors: a lost connection is an OSError too
        for block in chain([first], blocks):
            with storage_errors(job.part, "write"):
                stream.write(block)
            done += len(block)
            if job.on_progress:
                job.on_progress(job.path.name, done, total)


def _web_page(job: _Job) -> DataError:
    return DataError(
        f"{job.url}: got an HTML page; wanted JSON; the server sends one for addresses that do not exist - "
        "check the base address, the task and the split"
    )


def _put_in_place(job: _Job) -> None:
    """Check a complete download and give it its final name; throw it away if it is not JSON."""
    try:
        refuse_html(job.part)
        read_json(job.part)
    except DataError as error:
        size = _size(job.part)
        job.part.unlink(missing_ok=True)
        raise DataError(f"{job.url}: got {size} bytes that are not JSON ({error}); try again later") from error
    with storage_errors(job.path, "write"):
        os.replace(job.part, job.path)
