"""The vector cache: content keys, damage, several processes, forgetting."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
import torch

from mta.errors import StorageError
from mta.vector_cache import VectorCache, vector_key


@pytest.fixture
def cache(tmp_path: Path) -> VectorCache:
    return VectorCache(tmp_path / "deep" / "vectors.sqlite")


def test_what_was_written_is_read_back_bit_for_bit(cache: VectorCache) -> None:
    vectors = {vector_key("f", f"text {i}"): torch.randn(5) for i in range(1200)}  # more than one query's keys
    cache.write(vectors)
    found = cache.read([*vectors, vector_key("f", "other")], dimensions=5)
    assert found.keys() == vectors.keys()
    assert all(torch.equal(found[key], vectors[key]) for key in vectors)


def test_keys_tell_texts_and_encoders_apart() -> None:
    keys = {vector_key(f, text) for f in ("f", "g") for text in ("", "a", "b", "a\n", "\ud800", "é")}
    assert len(keys) == 12


def test_an_empty_cache_has_nothing(cache: VectorCache) -> None:
    assert cache.read([vector_key("f", "a")], dimensions=3) == {}
    assert cache.read([], dimensions=3) == {}


@pytest.mark.parametrize("damage", [b"", b"short", b"\x00" * 12, None])
def test_a_damaged_entry_counts_as_missing(cache: VectorCache, damage: bytes | None) -> None:
    good, bad = vector_key("f", "good"), vector_key("f", "bad")
    cache.write({good: torch.ones(3), bad: torch.ones(3)})
    with sqlite3.connect(cache.path) as connection:
        value = "text" if damage is None else damage
        connection.execute("UPDATE vectors SET vector = ? WHERE key = ?", (value, bad))
    assert list(cache.read([good, bad], dimensions=3)) == [good]


def test_an_entry_under_another_key_or_of_another_length_is_not_believed(cache: VectorCache) -> None:
    key, other = vector_key("f", "a"), vector_key("f", "b")
    cache.write({key: torch.ones(3)})
    assert cache.read([key], dimensions=4) == {}
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE vectors SET key = ?", (other,))
    assert cache.read([other], dimensions=3) == {}


def test_a_file_that_is_no_cache_says_it_can_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / "vectors.sqlite"
    path.write_bytes(b"this is something else entirely, and quite long enough to look at" * 20)
    with pytest.raises(StorageError, match=r"vectors\.sqlite.*can be deleted"):
        VectorCache(path).read([b"k"], dimensions=3)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create folder"):
        VectorCache(tmp_path / "file" / "vectors.sqlite").write({b"k": torch.ones(2)})


def test_forgotten_vectors_leave_no_bytes_behind(cache: VectorCache) -> None:
    vector = torch.tensor([1.2345678, -8.7654321, 3.1415926])
    keep, drop = vector_key("f", "keep"), vector_key("f", "drop")
    cache.write({drop: vector, keep: torch.ones(3)})
    cache.forget([drop])
    assert list(cache.read([keep, drop], dimensions=3)) == [keep]
    remains = b"".join(path.read_bytes() for path in cache.path.parent.iterdir())
    assert vector.numpy().tobytes() not in remains
    assert drop not in remains


def _write_many(path: Path, worker: int) -> None:
    cache = VectorCache(path)
    for i in range(20):
        cache.write({vector_key("f", f"{worker} {i}"): torch.full((4,), float(worker))})


def test_processes_that_create_and_fill_it_together_lose_nothing(cache: VectorCache) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(cache.path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    keys = [vector_key("f", f"{number} {i}") for number in range(4) for i in range(20)]
    assert len(cache.read(keys, dimensions=4)) == 80
