"""Downloads against a small server on this machine: resumed, checked, and never half under the final name."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mta.data.download import BLOCK_BYTES, OFFICIAL_URL, download_lamp, is_complete
from mta.errors import DataError, NotFound, StorageError

QUESTIONS = json.dumps([{"id": str(k), "input": "x" * 100, "profile": []} for k in range(6000)]).encode()
GOLDS = b'{"task": "LaMP_4", "golds": []}'
LAMP_4 = {"/LaMP_4/dev/dev_questions.json": QUESTIONS, "/LaMP_4/dev/dev_outputs.json": GOLDS}


@dataclass
class Site:
    """What the server has and how it behaves."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(LAMP_4))
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Bytes of body after which the connection is closed, one for each of the next requests."""
    chunked: bool = False
    range_lie: int = 0
    """Added to where a partial answer says it starts."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.site.asked.append((self.path, wanted))
        body = self.site.files.get(self.path)
        if body is None:
            return self._answer(404, b"no such page", {})
        if not wanted or not self.site.ranges:
            return self._answer(200, body, {})
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        span = f"bytes {start + self.site.range_lie}-{len(body) - 1}/{len(body)}"
        return self._answer(206, body[start:], {"Content-Range": span})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.site.cut_after.pop(0) if self.site.cut_after and status < 300 else None
        self.wfile.write(body[:cut])
        self.close_connection = cut is not None


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(site: Site, folder: Path, **options: object) -> list[Path]:
    settings = {"split": "dev", "folder": folder, "base_url": site.url, "timeout_s": 5.0, **options}
    return download_lamp(["lamp-4"], **settings)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_both_files_arrive_with_progress(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    paths = fetch(site, tmp_path, on_progress=lambda *report: seen.append(report))
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "LaMP_4/dev_questions.json",
        "LaMP_4/dev_outputs.json",
    ]
    assert [path.read_bytes() for path in paths] == [QUESTIONS, GOLDS]
    assert seen[0] == ("dev_questions.json", BLOCK_BYTES, len(QUESTIONS))
    assert ("dev_questions.json", len(QUESTIONS), len(QUESTIONS)) in seen
    assert seen[-1] == ("dev_outputs.json", len(GOLDS), len(GOLDS))
    assert names(tmp_path) == ["dev_outputs.json", "dev_questions.json"]


def test_valid_files_are_not_fetched_again_and_damaged_ones_are(site: Site, tmp_path: Path) -> None:
    questions, outputs = fetch(site, tmp_path)
    outputs.write_bytes(GOLDS[:-3])
    site.asked.clear()
    fetch(site, tmp_path)
    assert site.asked == [("/LaMP_4/dev/dev_outputs.json", None)]
    assert is_complete(questions)
    assert outputs.read_bytes() == GOLDS


def test_a_cut_is_resumed_within_one_call(site: Site, tmp_path: Path) -> None:
    site.cut_after = [300_000, 100_000]
    paths = fetch(site, tmp_path)
    assert paths[0].read_bytes() == QUESTIONS
    starts = [int((wanted or "bytes=0-")[6:-1]) for path, wanted in site.asked if "questions" in path]
    assert starts[0] == 0
    assert 0 < starts[1] < starts[2] < len(QUESTIONS)


def test_a_cut_is_resumed_by_the_next_call(site: Site, tmp_path: Path) -> None:
    site.cut_after = [300_000]
    with pytest.raises(StorageError, match=r"cannot download .*bytes are kept and the next run goes on from there"):
        fetch(site, tmp_path, attempts=1)
    assert names(tmp_path) == ["dev_questions.json.part"]
    have = (tmp_path / "LaMP_4" / "dev_questions.json.part").stat().st_size
    assert have > 0
    assert fetch(site, tmp_path)[0].read_bytes() == QUESTIONS
    assert site.asked[1] == ("/LaMP_4/dev/dev_questions.json", f"bytes={have}-")
    assert names(tmp_path) == ["dev_outputs.json", "dev_questions.json"]


def leave_part(folder: Path, data: bytes) -> None:
    (folder / "LaMP_4").mkdir()
    (folder / "LaMP_4" / "dev_questions.json.part").write_bytes(data)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("part", [QUESTIONS[:1000], QUESTIONS, QUESTIONS + b"   and more of another file"])
def test_a_part_is_continued_or_begun_again(site: Site, tmp_path: Path, part: bytes, ranges: bool) -> None:
    leave_part(tmp_path, part)
    site.ranges = ranges
    assert fetch(site, tmp_path)[0].read_bytes() == QUESTIONS
    assert names(tmp_path) == ["dev_outputs.json", "dev_questions.json"]


def test_a_part_of_another_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    leave_part(tmp_path, b"[[[ something else")
    with pytest.raises(DataError, match="that are not JSON"):
        fetch(site, tmp_path)
    assert names(tmp_path) == []
    assert fetch(site, tmp_path)[0].read_bytes() == QUESTIONS


def test_a_wrong_range_is_not_appended(site: Site, tmp_path: Path) -> None:
    leave_part(tmp_path, QUESTIONS[:1000])
    site.range_lie = 5
    assert fetch(site, tmp_path)[0].read_bytes() == QUESTIONS
    assert [wanted for _, wanted in site.asked[:2]] == ["bytes=1000-", None]


def test_size_may_be_unknown(site: Site, tmp_path: Path) -> None:
    site.chunked = True
    totals: list[int | None] = []
    paths = fetch(site, tmp_path, on_progress=lambda name, done, total: totals.append(total))
    assert paths[0].read_bytes() == QUESTIONS
    assert set(totals) == {None}


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\xef\xbb\xbf\n <html>"])
def test_a_web_page_with_status_200_is_refused(site: Site, tmp_path: Path, page: bytes) -> None:
    site.files["/LaMP_4/dev/dev_questions.json"] = page + b"." * 16_000
    with pytest.raises(DataError, match=r"dev_questions\.json: got an HTML page; wanted JSON"):
        fetch(site, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("body", [b"", b"{", b'"\xff"'])
def test_what_is_not_json_is_refused(site: Site, tmp_path: Path, body: bytes) -> None:
    site.files["/LaMP_4/dev/dev_questions.json"] = body
    with pytest.raises(DataError, match=f"got {len(body)} bytes that are not JSON"):
        fetch(site, tmp_path)
    assert names(tmp_path) == []


def test_missing_files_and_servers(site: Site, tmp_path: Path) -> None:
    del site.files["/LaMP_4/dev/dev_outputs.json"]
    with pytest.raises(StorageError, match=r"dev_outputs\.json: got HTTP status 404"):
        fetch(site, tmp_path)
    assert names(tmp_path) == ["dev_questions.json"]
    with pytest.raises(StorageError, match="nothing was fetched; check the network"):
        fetch(site, tmp_path / "b", base_url="http://127.0.0.1:1")


def test_a_folder_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot create folder"):
        fetch(site, tmp_path / "file")


@pytest.mark.parametrize(
    ("task_id", "split", "time_split", "asked", "kept"),
    [
        ("lamp-2", "dev", False, "LaMP_2/new/dev/dev_", "LaMP_2/dev_"),
        ("lamp-2", "train", True, "time/LaMP_2/new/train/train_", "time/LaMP_2/train_"),
        ("lamp-5", "dev", True, "time/LaMP_5/dev/dev_", "time/LaMP_5/dev_"),
        ("lamp-1", "test", False, "LaMP_1/test/test_", "LaMP_1/test_"),
    ],
)
def test_addresses(
    site: Site, tmp_path: Path, task_id: str, split: str, time_split: bool, asked: str, kept: str
) -> None:
    parts = ["questions"] if split == "test" else ["questions", "outputs"]
    site.files = {f"/{asked}{part}.json": GOLDS for part in parts}
    paths = download_lamp([task_id], split=split, folder=tmp_path, base_url=f"{site.url}/", time_split=time_split)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [f"{kept}{part}.json" for part in parts]
    assert [path for path, _ in site.asked] == list(site.files)


def test_any_name_of_a_task_will_do(site: Site, tmp_path: Path) -> None:
    for name in ("LaMP_4", "news_headline", "LAMP-4"):
        paths = download_lamp([name], split="dev", folder=tmp_path, base_url=site.url)
        assert paths == [tmp_path / "LaMP_4" / "dev_questions.json", tmp_path / "LaMP_4" / "dev_outputs.json"]
    assert len(site.asked) == 2


def test_unknown_names_are_listed(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="unknown task 'lamp-6'; known: lamp-1, lamp-2"):
        download_lamp(["lamp-6"], split="dev", folder=tmp_path)
    with pytest.raises(NotFound, match=r"unknown task of LaMP 'own'; known: lamp-1, .*lamp-5$"):
        download_lamp(["own"], split="dev", folder=tmp_path)
    with pytest.raises(NotFound, match="unknown split 'valid'; known: dev, test, train"):
        download_lamp(["lamp-1"], split="valid", folder=tmp_path)
    assert OFFICIAL_URL.startswith("https://")
