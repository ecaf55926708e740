"""Running `mta` in this process, on films and a few people small enough to train in a blink."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from mta.cli.main import app

ASKED = "Which tag does this movie relate to? tags: [comedy, sci-fi] description: "
TAGS = ("comedy", "sci-fi", "classic", "romance")
QUICK_BANK = ("--bank-size", 2, "--min-history", 0, "--bank-epochs", 1, "--bank-min-updates", 0, "--preset", "small")
QUICK_ADAPT = ("--adapt-epochs", 1, "--adapt-min-updates", 0)
QUICK = ("--base", "tiny-random", *QUICK_BANK, *QUICK_ADAPT)


@dataclass(frozen=True)
class Outcome:
    """What one call of the program did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def mta(*words: object) -> Outcome:
    """Call the program."""
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return Outcome(done.exit_code, done.stdout, done.stderr)


def good(*words: object) -> Outcome:
    """Call the program and expect it to succeed."""
    done = mta(*words)
    assert done.code == 0, done.err
    return done


def refused(*words: object) -> str:
    """Call the program, expect it to refuse its input properly, and return the one line it says."""
    done = mta(*words)
    assert done.code == 2, (done.code, done.err)
    assert "Traceback" not in done.err
    assert not done.out
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.err
    return lines[0]


def film_item(name: str, number: int) -> dict[str, str]:
    text = f"Film {number} that {name} saw, about {name} and a lighthouse."
    return {"id": f"{name}-{number}", "description": text, "tag": TAGS[number % len(TAGS)]}


def film_record(name: str, *, items: int = 3, record_id: str | None = None) -> dict[str, Any]:
    question = f"{ASKED}A new film that {name} has not seen, about {name} and a train."
    profile = [film_item(name, number) for number in range(items)]
    return {"id": record_id or f"q-{name}", "user_id": name, "input": question, "profile": profile}


def write_films(path: Path, records: Sequence[dict[str, Any]], *, golds: Sequence[str] | None = None) -> Path:
    """Write a questions file and the answers beside it; `golds` are the ids answered, all by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(records)))
    answered = [record["id"] for record in records] if golds is None else golds
    outputs = {"task": "LaMP_2", "golds": [{"id": name, "output": "comedy"} for name in answered]}
    path.with_name(path.name.replace("questions", "outputs")).write_text(json.dumps(outputs))
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
