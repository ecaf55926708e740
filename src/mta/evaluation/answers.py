"""Answers of one method to all queries of a run, kept in a file under everything that decides them.

Example:
    >>> record = method_record("mta", find_method("mta"), targets, resources, folder)
    >>> record.predictions[0].text
    'twist ending'
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mta.base_model import BaseModel
from mta.baselines.methods import PARTS
from mta.candidates import TEMPERATURES
from mta.config import to_dict
from mta.errors import DataError
from mta.evaluation.predict import examples_of, finished, predict
from mta.evaluation.predictions_file import require_finite
from mta.evaluation.restore import record_adapters
from mta.evaluation.scores import MethodRecord
from mta.files import read_json, seal_holds, sealed, sha256_json, write_json
from mta.personalize import Method, Personalized, PersonalizedUsers, Resources
from mta.progress import silent
from mta.records import Prediction, User
from mta.tasks.task import Task

log = logging.getLogger(__name__)

MIXED = "token by token"
"""How mixtures are mixed; answers that were mixed otherwise are not read back."""


def method_record(
    name: str, method: Method, targets: Sequence[User], resources: Resources, folder: Path
) -> MethodRecord:
    """Personalize the targets with one method and answer their queries, or read back what is there already.

    Args:
        name: row of the table and name of the file of answers.
        method: see `baselines.methods`.
        targets: users with queries and gold answers.
        resources: what the method needs.
        folder: run folder.
    """
    people = method(targets, resources)
    answers = _answers(name, people, resources, folder / "predictions")
    if name in PARTS:
        record_adapters(people, resources, name=name)
    count = len(people.users)
    return MethodRecord(
        name=name,
        predictions=finished(people.users, answers.rows),
        updates_per_user=sum(person.updates for person in people.users.values()) / count,
        adapter_bytes_per_user=sum(person.adapter_bytes for person in people.users.values()) / count,
        train_seconds=people.train_seconds,
        shared_train_seconds=people.shared_seconds,
        predict_seconds=answers.seconds,
        cut_prompts=answers.cut_prompts,
        cut_training_prompts=people.cut_rows,
        not_adapted=Counter(person.note for person in people.users.values() if person.note),
        chosen_on_pool=[people.chosen],
        chosen_by_users=[people.chosen_by_users],
    )


@dataclass(frozen=True, slots=True)
class _Answers:
    """One method's answers to all queries."""

    rows: list[Prediction]
    seconds: float | None
    """None where no model was asked."""
    cut_prompts: int


def _answers(name: str, people: PersonalizedUsers, resources: Resources, folder: Path) -> _Answers:
    """Answer, or read the answers back where exactly these were given before, by this method or another."""
    if any(person.answers for person in people.users.values()):
        return replace(_ask(name, people, replace(resources, progress=silent)), seconds=None)
    path = folder / f"{name}.json"
    wanted = predictions_fingerprint(people, resources.base, resources.task)
    for earlier in (path, *sorted(folder.glob("*.json"))):
        saved = _saved(earlier)
        if saved.get("fingerprint") == wanted:
            rows = [Prediction(**row) for row in saved["predictions"]]
            answers = _Answers(rows, float(saved["seconds"]), int(saved["cut_prompts"]))
            break
    else:
        answers = _ask(name, people, resources)
    content = {
        "fingerprint": wanted,
        "seconds": answers.seconds,
        "cut_prompts": answers.cut_prompts,
        "predictions": list(map(asdict, answers.rows)),
    }
    write_json(path, sealed(content))
    return answers


def _ask(name: str, people: PersonalizedUsers, resources: Resources) -> _Answers:
    started = time.monotonic()
    with resources.progress(f"answers of {name}") as step:
        made = predict(list(people.users.values()), base=resources.base, engine=resources.engine, step=step)
    require_finite(name, made.rows)
    return _Answers(list(made.rows), time.monotonic() - started, made.cut_prompts)


def _saved(path: Path) -> dict[str, Any]:
    """Read back an earlier call's answers; {} where there are none or the file is damaged (said in the log)."""
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except DataError as error:
        log.warning("answering again: %s", error)
        return {}
    if not seal_holds(found):
        log.warning("answering again: %s is damaged or was edited, its checksum differs", path)
        return {}
    return dict(found)


def predictions_fingerprint(people: PersonalizedUsers, base: BaseModel, task: Task) -> str:
    """Return a SHA-256 over everything that decides one method's answers, the prompts as they are rendered included."""
    asked = [(name, *_asked(person)) for name, person in people.users.items()]
    decoding = [task.task_id, task.form, task.labels, task.max_new_tokens, task.repetition_penalty]
    decoding += [] if task.labels else [TEMPERATURES]
    return sha256_json([asked, base.fingerprint, base.tokens.fingerprint, str(base.dtype), decoding])


def _asked(person: Personalized) -> tuple[Any, ...]:
    """Return who answers which questions, of a mixture all its ways."""
    who = person.adapter.fingerprint if person.adapter else None
    ways = [(weight, *_asked(way)) for weight, way in person.mixture]
    return who, to_dict(person.prompts), _questions(person), *([MIXED, ways] if ways else [])


def _questions(person: Personalized) -> list[Any]:
    examples = examples_of(person)
    return [(example.example_id, example.answer, asdict(person.render(example))) for example in examples]
