"""A finished run read back for writing it elsewhere: its settings, and each user's anchors, adapters and answers.

Fingerprints say what belongs together: answers that were given by other adapters, or to other users, are refused.

Example:
    >>> run = open_run(Path("runs/demo"), base, "mta")
    >>> served_users(run, targets)[0].match.anchor_ids
    ('17', '203')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mta.bank import Bank, history_fingerprint, load_bank
from mta.base_model import BaseModel
from mta.baselines.methods import PARTS
from mta.config import MergeConfig, PromptConfig, from_dict
from mta.errors import ConfigError, DataError
from mta.evaluation.answers import predictions_fingerprint
from mta.evaluation.restore import AdapterSettings, read_settings, stored_adapter
from mta.evaluation.run_config import RunConfig
from mta.files import read_json
from mta.lora.adapter import Recipe, as_sum
from mta.merging import Match
from mta.personalize import Personalized, PersonalizedUsers, merged_recipe, renderer, stack_recipes
from mta.records import Prediction, User
from mta.tasks.task import Task

WRITABLE = tuple(name for name, parts in PARTS.items() if parts.merged)
"""Methods that can be written in this layout: those that merge anchors."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run, as far as one method is concerned."""

    folder: Path
    method: str
    task: Task
    bank: Bank
    base: BaseModel
    adapters: AdapterSettings
    """What the method's adapters were merged from and trained over."""

    @property
    def merge(self) -> MergeConfig:
        """How this method merges."""
        return self.adapters.merge

    @property
    def prompts(self) -> PromptConfig:
        """How prompts were rendered."""
        return self.bank.config.prompts

    @property
    def predictions(self) -> Path:
        """File of the method's answers."""
        return _predictions_path(self.folder, self.method)


@dataclass(frozen=True, slots=True)
class ServedUser:
    """One target user as the run served them."""

    user: User
    match: Match
    merged: Recipe
    """The merged anchors, over the bank's population adapter where it has one."""
    own: Recipe | None
    """The adapter trained on the user's examples; None where there is none."""
    rows: tuple[Prediction, ...]


def open_run(folder: Path, base: BaseModel, method: str) -> FinishedRun:
    """Read the settings and the bank of a run that got to its end with this method.

    Raises:
        ConfigError: the method merges no anchors.
        DataError: the run is not finished, or a file in it is damaged.
        BankError: the base model is not the run's.
    """
    if method not in WRITABLE:
        raise ConfigError(
            f"method {method!r} cannot be written in the reference layout, which is about merged anchors; "
            f"choose one of {', '.join(WRITABLE)}"
        )
    needed = (folder / "config.json", folder / "matches.json", folder / "scores.json")
    for path in (*needed, _predictions_path(folder, method)):
        if not path.is_file():
            raise DataError(
                f"{folder} is not a finished run with method {method!r}: it has no {path.relative_to(folder)}; "
                f"finish it with `mta run` and --method {method}"
            )
    config = _config(folder / "config.json")
    return FinishedRun(
        folder=folder,
        method=method,
        task=config.task,
        bank=load_bank(folder / "bank", base=base),
        base=base,
        adapters=read_settings(folder / "adapters", method),
    )


def _predictions_path(folder: Path, method: str) -> Path:
    return folder / "predictions" / f"{method}.json"


def _config(path: Path) -> RunConfig:
    try:
        return from_dict(RunConfig, _part(path, "config"))
    except TypeError as error:
        raise DataError(f"{path} is not the config of a run ({error}); run again to write it anew") from error


def _part(path: Path, name: str) -> Any:
    value = read_json(path)
    if not isinstance(value, dict) or name not in value:
        raise DataError(f"{path} has no {name!r}, so it was not written by a run; run again to write it anew")
    return value[name]


def served_users(run: FinishedRun, targets: Sequence[User]) -> list[ServedUser]:
    """Put together what the run has for each target user, in the order of `targets`.

    Raises:
        DataError: these are not the run's target users, or the answers were given by other adapters.
        AdapterError: an adapter file is damaged.
    """
    matches = _matches(run.folder / "matches.json")
    strangers = [user.user_id for user in targets if user.user_id not in matches]
    if strangers or len(targets) != len(matches):
        named = f" ({strangers[0]!r} is not among them)" if strangers else ""
        raise DataError(
            f"{run.folder} served {len(matches)} users, got {len(targets)} targets{named}; "
            "give the target users of that run, all of them"
        )
    rows = _predictions(run.predictions)
    served = []
    for user in targets:
        match = run.adapters.match(user.user_id)  # a method's weights may be others than the run's
        merged = merged_recipe(match, run.bank, run.merge)
        own = _own(run, user, merged) if PARTS[run.method].adapted else None
        answers = tuple(row for row in rows if row.user_id == user.user_id)
        served.append(ServedUser(user, match, merged, own, answers))
    _check_belonging(run, served)
    return served


def _matches(path: Path) -> dict[str, Match]:
    try:
        rows = [
            Match(row["user_id"], tuple(row["anchor_ids"]), tuple(row["similarities"]), tuple(row["weights"]))
            for row in read_json(path)
        ]
        return {match.user_id: match for match in rows}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not the matches file of a run ({error!r}); run again to write it anew") from error


def _predictions(path: Path) -> list[Prediction]:
    try:
        return [Prediction(**row) for row in _part(path, "predictions")]
    except TypeError as error:
        raise DataError(f"{path} is not a predictions file ({error}); delete it and run again") from error


def _own(run: FinishedRun, user: User, merged: Recipe) -> Recipe | None:
    """Return the user's own adapter, or None where the run gave the user none."""
    known, folder, base = run.adapters, run.folder / "adapters", run.base.fingerprint
    own = stored_adapter(folder, user.user_id, run.method, known, base_fingerprint=base, beneath=merged.parts())
    return Recipe(known.users[user.user_id], own.rank, lambda: as_sum(own)) if own else None


def _check_belonging(run: FinishedRun, served: Sequence[ServedUser]) -> None:
    """Check that the answers were given by exactly these adapters to these users."""
    people = PersonalizedUsers({one.user.user_id: _personalized(run, one) for one in served})
    if _part(run.predictions, "fingerprint") != predictions_fingerprint(people, run.base, run.task):
        raise DataError(
            f"{run.predictions} was not made from the adapters, matches and settings now in {run.folder}, or not for "
            "these target users in this dtype: the data changed, or a run with other settings was stopped half-way; "
            "finish it with `mta run` and the same arguments"
        )


def _personalized(run: FinishedRun, one: ServedUser) -> Personalized:
    adapter = stack_recipes([part for part in (one.merged, one.own) if part])
    return Personalized(one.user, run.task, adapter, renderer(run.task, run.prompts), run.prompts)


def anchor_users(bank: Bank, pool: Sequence[User], matched: set[str]) -> list[User]:
    """Return the pool's records of all anchors that are in use or in `matched`, in bank order.

    Raises:
        DataError: an anchor is not in the pool, or has another history there.
    """
    by_id = {user.user_id: user for user in pool}
    anchors = [anchor for anchor in bank.anchors if not anchor.retired or anchor.user_id in matched]
    for anchor in anchors:
        user = by_id.get(anchor.user_id)
        if user is None or history_fingerprint(user) != anchor.data_fingerprint:
            what = "is not in the pool" if user is None else "has another history in the pool than in the bank"
            raise DataError(
                f"anchor {anchor.user_id!r} {what} ({len(pool)} users); give the pool file the bank was built from"
            )
    return [by_id[anchor.user_id] for anchor in anchors]
