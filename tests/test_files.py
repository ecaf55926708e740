"""Files that are whole or not there, and names that stay in their folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.errors import DataError, StorageError
from mta.files import (
    MAX_NAME_BYTES,
    SAFE_CHARACTERS,
    SEAL,
    atomic_path,
    expand_home,
    folder_if_used,
    is_there,
    make_folder,
    read_json,
    read_jsonl,
    read_text,
    safe_name,
    seal_holds,
    sealed,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)
from permissions import permissions_count

# names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ann-2_B", "ann-2_B"),
        ("a/b", "a%2Fb"),
        ("..", "%2E%2E"),
        ("a b%", "a%20b%25"),
        ("é", "%C3%A9"),
        ("\ud800", "%ED%A0%80"),
        ("A~b", "A%7Eb"),
    ],
)
def test_names_by_hand(name: str, wanted: str) -> None:
    assert safe_name(name) == wanted


any_text = st.text(st.characters(), max_size=80) | st.text(st.sampled_from("a%./\\~é☃2FE"), max_size=200)


@given(any_text)
def test_a_name_is_one_plain_part_of_a_path(name: str) -> None:
    made = safe_name(name)
    assert set(made) <= SAFE_CHARACTERS | {"%", "~"}
    assert 1 <= len(made) <= MAX_NAME_BYTES
    assert PurePosixPath(made).parts == PureWindowsPath(made).parts == (made,)


@given(st.lists(any_text, min_size=2, max_size=2, unique=True))
def test_two_names_never_meet(names: list[str]) -> None:
    assert safe_name(names[0]) != safe_name(names[1])


def test_long_and_empty_names_never_meet_others() -> None:
    long = [prefix + "x" * 500 + suffix for prefix in ("", "y") for suffix in ("", "a", "é")]
    names = [safe_name(name) for name in ["", "%", "%~", "~", "x" * MAX_NAME_BYTES, "x" * (MAX_NAME_BYTES + 1), *long]]
    assert len(set(names)) == len(names)
    assert safe_name(safe_name(long[0])) != safe_name(long[0]), "a short name that looks like a long one's file"


# whole or not there -----------------------------------------------------------------------------------------------


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    write_text(path, "first ☃\n")
    write_text(path, "2")
    assert path.read_bytes() == b"2"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_write_that_breaks_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def break_off() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(StorageError if error is OSError else error):
        break_off()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent, "a rename is atomic within one folder only"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as one, atomic_path(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one", "the last to finish wins"


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 240)
    write_bytes(path, b"ok")
    assert path.read_bytes() == b"ok"


def test_errors_of_the_system_name_the_path_and_the_next_step(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "x")
    for attempt in (
        lambda: write_text(tmp_path / "file" / "below", "x"),
        lambda: make_folder(tmp_path / "file" / "below"),
        lambda: read_text(tmp_path / "none"),
        lambda: read_text(tmp_path),
        lambda: read_json(tmp_path / "none.json"),
        lambda: sha256_file(tmp_path / "none"),
    ):
        with pytest.raises(
            StorageError, match=rf"cannot (write|read|create folder) {tmp_path}.*; (check|this is a folder)"
        ):
            attempt()


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with permissions_count(), pytest.raises(StorageError, match="Permission denied"):
        write_text(tmp_path / "a.txt", "x")


def test_a_place_that_may_not_be_looked_at_is_neither_there_nor_not(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    assert is_there(locked)
    assert not is_there(locked / "none")
    assert not is_there(tmp_path / "none" / "none")
    with pytest.raises(StorageError, match="File name too long"):
        is_there(tmp_path / ("x" * 300))
    locked.chmod(0o000)
    try:
        with permissions_count():
            for attempt in (is_there, make_folder, lambda path: write_text(path, "x"), read_text, sha256_file):
                with pytest.raises(StorageError, match=f"{locked / 'a'}: Permission denied"):
                    attempt(locked / "a")
            with pytest.raises(StorageError, match="Permission denied"), folder_if_used(locked / "a"):
                pass
    finally:
        locked.chmod(0o700)


def test_home_folders_are_found_and_nobodys_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/models/x") == tmp_path / "models" / "x"
    assert expand_home("~no-such-user/x") == Path("~no-such-user/x")
    assert expand_home("a/~b") == Path("a/~b")


# JSON -------------------------------------------------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(plain | words, lambda part: st.lists(part, max_size=3) | st.dictionaries(words, part, max_size=3))


@given(values)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert sha256_json(read_json(path)) == sha256_json(value), "a checksum must survive the disk"


@given(st.lists(st.dictionaries(words, plain | words, max_size=3), max_size=4))
def test_json_lines_come_back_with_their_numbers(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == list(enumerate(rows, start=1))


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}])
def test_numbers_json_does_not_have_are_never_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "{'a': 1}", '{"a": 1} x', "[" * 100_000, "1" * 5000 + "2"])
def test_broken_json_is_named_with_the_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"{path} is not valid JSON"):
        read_json(path)
    (tmp_path / "a.jsonl").write_text('{"fine": 1}\n\n' + (text or "{"))
    with pytest.raises(DataError, match=r"a\.jsonl, line 3 is not valid JSON"):
        read_jsonl(tmp_path / "a.jsonl")


def test_text_that_is_not_utf8_is_refused_and_a_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 2\)"):
        read_text(tmp_path / "a")
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a") == {"a": 1}


def test_line_separators_inside_json_strings_do_not_split_lines(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one\u2028two\x85three\x0b"}])
    assert read_jsonl(tmp_path / "a.jsonl") == [(1, {"text": "one\u2028two\x85three\x0b"})]


# checksums --------------------------------------------------------------------------------------------------------


def test_checksums_against_the_plain_hash(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    text = '{"a":[1,2.5,"\\u2603"],"b":null}'
    assert sha256_json({"b": None, "a": (1, 2.5, "☃")}) == hashlib.sha256(text.encode()).hexdigest()
    assert sha256_json({"b": None, "a": [1, 2.5, "☃"]}) == sha256_json(json.loads(text))


def test_a_sealed_object_shows_any_change(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", sealed({"a": [1, 2.5, "☃"], "b": None}))
    found = read_json(tmp_path / "a.json")
    assert seal_holds(found)
    for changed in (
        {**found, "a": []},
        {**found, "c": 1},
        {"a": found["a"], "b": None},
        {**found, SEAL: "0"},
        [],
        None,
    ):
        assert not seal_holds(changed)


def test_a_new_folder_that_stays_empty_goes_when_the_work_fails(tmp_path: Path) -> None:
    new, old, used = tmp_path / "deep" / "new", tmp_path / "old", tmp_path / "used"
    old.mkdir()

    def fail_in(folder: Path) -> None:
        with folder_if_used(folder):
            if folder is used:
                (folder / "kept").touch()
            raise RuntimeError("stop")

    for folder in (new, old, used):
        with pytest.raises(RuntimeError, match="stop"):
            fail_in(folder)
    assert not new.exists()
    assert old.is_dir()
    assert (used / "kept").exists()
    with folder_if_used(new):
        pass
    assert new.is_dir()


# odd targets ------------------------------------------------------------------------------------------------------


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "a.txt"
    write_text(real, "old")
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert read_text(real) == "new"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(StorageError, match="no regular file"):
        write_text(path, "new")
    assert path.is_dir() if kind == "folder" else path.is_fifo()
    assert [*tmp_path.iterdir()] == [path]
