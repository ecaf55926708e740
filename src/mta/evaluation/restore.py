"""Personalized users from what earlier calls left on disk, without training anything.

    adapters/mta/<user>.safetensors    one file a user, as `personalize_users` writes them
    adapters/mta.json                  what they were trained over and for whom (`record_adapters`)

`mta adapt` and a run write the same files; a run writes the record when the method has answered, so that it is always
about the adapters that gave the answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mta.adapter_files import load_trained
from mta.bank import Bank, history_fingerprint
from mta.baselines.methods import PARTS
from mta.config import MergeConfig, from_dict, to_dict
from mta.errors import AdapterError, BankError, DataError, MtaError, NotFound, StorageError, unknown_name
from mta.files import is_there, read_json, safe_name, seal_broken, sealed, write_json
from mta.lora.adapter import Adapter, AdapterSum, Recipe, recipe
from mta.lora.core import own_part
from mta.merging import Match
from mta.personalize import (
    Personalized,
    PersonalizedUsers,
    Resources,
    match_users,
    merged_recipe,
    renderer,
    stack_recipes,
)
from mta.records import User

log = logging.getLogger(__name__)

STORED = tuple(name for name, parts in PARTS.items() if parts.adapted)
"""Methods that keep an adapter for each user."""
BARE = "base"
SHOWN_USERS = 5


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What a method's adapters were merged from and trained over."""

    bank_checksum: str
    """Of the bank that was used."""
    merge: MergeConfig
    matches: Mapping[str, Match]
    """user id -> the anchors beneath the user's adapter; empty for adapt-only."""
    users: Mapping[str, str]
    """user id -> fingerprint of the training; empty for merged-only."""
    skipped: Mapping[str, str]
    """user id -> why the user has no adapter."""
    histories: Mapping[str, str] = field(default_factory=dict)
    """user id -> fingerprint of the history that was learned; empty in records of earlier versions."""

    def match(self, user_id: str) -> Match:
        """Return the anchors beneath one user's adapter.

        Raises:
            NotFound: no anchors are recorded for the user.
        """
        if user_id not in self.matches:
            some = ", ".join(list(self.matches)[:SHOWN_USERS])
            raise NotFound(f"no anchors are recorded for user {user_id!r}; there are {len(self.matches)} users: {some}")
        return self.matches[user_id]

    def check_history(self, user: User) -> None:
        """Check that a user who is to be scored was adapted on the history the file gives now.

        With another number of queries held out, the adapter would have been trained on what is asked.

        Raises:
            DataError: it was another history, and the user has queries with gold answers.
        """
        learned = self.histories.get(user.user_id)
        scored = any(query.gold is not None for query in user.queries)
        if learned and scored and learned != history_fingerprint(user):
            raise DataError(
                f"the adapter of {user.user_id!r} was trained on another history than the file gives now, so the "
                "queries may be among what it learned; hold out the same queries as in adaptation "
                "(--queries-per-user), or adapt again"
            )

    def check_bank(self, bank: Bank, folder: Path) -> None:
        """Check that the anchors of `bank` are those beneath the adapters in `folder`.

        Raises:
            BankError: they are not.
        """
        if self.bank_checksum != bank.checksum:
            raise BankError(
                f"the adapters in {folder} were trained over another bank ({self.bank_checksum[:12]}) than "
                f"{bank.folder} ({bank.checksum[:12]}); give that bank, or adapt the users again"
            )


def record_adapters(people: PersonalizedUsers, resources: Resources, *, name: str) -> Path:
    """Write down what the users' adapters were trained over, beside them; earlier users of the same settings stay.

    Args:
        people: the users as the method made them.
        resources: the same it was called with.
        name: the method, one of `PARTS`, and the sub-folder of its adapters.
    """
    path = resources.folder / f"{name}.json"
    settings = {
        "bank": resources.need_bank().checksum,
        "base": {"name": resources.base.name, "fingerprint": resources.base.fingerprint},
        "merge": to_dict(PARTS[name].merging(resources.merge)),
        "adapt": to_dict(resources.adapt),
        "prompts": to_dict(resources.prompts),
    }
    before = _record_before(path)
    same = all(before.get(key) == value for key, value in settings.items())
    users: dict[str, str] = dict(before["users"]) if same else {}
    skipped: dict[str, str] = dict(before["skipped"]) if same else {}
    matches: dict[str, Any] = dict(before["matches"]) if same else {}
    histories: dict[str, str] = dict(before.get("histories", {})) if same else {}
    for user_id, person in people.users.items():
        if person.match:
            matches[user_id] = asdict(person.match)
        if person.note:
            users.pop(user_id, None)
            skipped[user_id] = person.note
        elif PARTS[name].adapted:
            skipped.pop(user_id, None)
            histories[user_id] = history_fingerprint(person.user)
            users[user_id] = str(load_trained(_file(resources.folder, name, user_id))[1].get("fingerprint"))
    record = {**settings, "matches": matches, "users": users, "skipped": skipped, "histories": histories}
    write_json(path, sealed(record))
    return path


def _record_before(path: Path) -> dict[str, Any]:
    """Return what an earlier call recorded; {} where it is not there or damaged (said in the log)."""
    try:
        before = read_json(path) if is_there(path) else {}
    except DataError as error:
        log.warning("the record of the users adapted before is left aside: %s", error)
        return {}
    if seal_broken(before):
        log.warning("%s is damaged or was edited, its checksum differs: the users adapted before are left aside", path)
        return {}
    before = before if isinstance(before, dict) else {}
    parts = [before.get("users"), before.get("skipped"), before.get("matches"), before.get("histories", {})]
    return before if all(isinstance(part, dict) for part in parts) else {}


def restore_users(users: Sequence[User], resources: Resources, *, method: str) -> PersonalizedUsers:
    """Rebuild users as a method serves them; adapters are read from `resources.folder`.

    Raises:
        NotFound: there is no such method.
        AdapterError: an adapter is missing, damaged, somebody else's, or of another base model.
        BankError: the adapters were trained over another bank.
    """
    if method not in (known := [*PARTS, BARE]):
        raise unknown_name("method to restore", method, known)
    parts = PARTS.get(method)
    settings = read_settings(resources.folder, method) if method in STORED else None
    matches: Mapping[str, Match] = {}
    merge = resources.merge
    if parts and parts.merged and settings:
        settings.check_bank(resources.need_bank(), resources.folder)
        merge, matches = settings.merge, {user.user_id: settings.match(user.user_id) for user in users}
    elif parts and parts.merged:
        merge = parts.merging(merge)
        matches = match_users(users, replace(resources, merge=merge, match=parts.matching(resources.match)))
    people = {}
    for user in users:
        if settings:
            settings.check_history(user)
        match = matches.get(user.user_id)
        beneath = [merged_recipe(match, resources.need_bank(), merge)] if match else []
        own = _own(user, resources, method, settings, beneath)
        people[user.user_id] = Personalized(
            user=user,
            task=resources.task,
            adapter=stack_recipes([*beneath, *([recipe(own)] if own else [])]),
            render=renderer(resources.task, resources.prompts),
            prompts=resources.prompts,
            match=match,
            note=settings.skipped.get(user.user_id, "") if settings else "",
        )
    return PersonalizedUsers(people)


def _own(
    user: User, resources: Resources, method: str, settings: AdapterSettings | None, beneath: Sequence[Recipe]
) -> Adapter | None:
    if settings is None:
        return None
    return stored_adapter(
        resources.folder,
        user.user_id,
        method,
        settings,
        base_fingerprint=resources.base.fingerprint,
        beneath=beneath[0].parts() if beneath else None,
    )


def stored_adapter(
    folder: Path,
    user_id: str,
    name: str,
    settings: AdapterSettings,
    *,
    base_fingerprint: str,
    beneath: AdapterSum | None,
) -> Adapter | None:
    """Read one user's own adapter; None for a user of whom it is recorded why there is none.

    Args:
        folder: of all methods' adapters.
        user_id: whose.
        name: the method.
        settings: its record.
        base_fingerprint: of the base model that the adapter is for.
        beneath: what it was trained over, where there is something.

    Raises:
        NotFound: no adapter was trained for the user.
        AdapterError: the file is damaged, somebody else's, of other settings, of another base model, or diverged.
    """
    if user_id in settings.skipped:
        return None
    path = _file(folder, name, user_id)
    if user_id not in settings.users or not is_there(path):
        raise NotFound(
            f"{folder} has no {name} adapter of user {user_id!r}; adapt this user first, or ask for merged-only"
        )
    tensors, note = load_trained(path)
    if note.get("base_fingerprint") != base_fingerprint:
        raise AdapterError(
            f"{path} was trained on base model {note.get('base')!r} ({str(note.get('base_fingerprint'))[:12]}), wanted "
            f"the one with fingerprint {base_fingerprint[:12]}; use that base model, or adapt this user again"
        )
    if note.get("job_id") != user_id:
        raise AdapterError(
            f"{path} is the adapter of {note.get('job_id')!r}, not of {user_id!r}; adapt this user again"
        )
    if note.get("fingerprint") != settings.users[user_id]:
        raise AdapterError(f"{path} was trained with other settings or data than recorded; adapt this user again")
    if note.get("diverged"):
        raise AdapterError(f"{path} is of a training that diverged; adapt this user again with a lower learning rate")
    return own_part(beneath, tensors)


def read_settings(folder: Path, name: str) -> AdapterSettings:
    """Read what a method's adapters, those in `folder/name`, were merged from and trained over.

    Raises:
        DataError: there is no such record, or it is damaged.
    """
    path = folder / f"{name}.json"
    if not is_there(path):
        found = ", ".join(method for method in PARTS if (folder / f"{method}.json").exists())
        raise DataError(
            f"{folder} has no {name} adapters on record ({path.name}), only those of: {found or 'no method'}; adapt "
            f"the users first, or finish the run with --method {name}"
        )
    try:
        values = read_json(path)
        if seal_broken(values):
            raise ValueError("its checksum differs")
        return AdapterSettings(
            bank_checksum=str(values["bank"]),
            merge=from_dict(MergeConfig, values["merge"]),
            matches={user_id: _match(row) for user_id, row in values["matches"].items()},
            users=dict(values["users"]),
            skipped=dict(values["skipped"]),
            histories=dict(values.get("histories", {})),
        )
    except StorageError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, MtaError) as error:
        raise DataError(f"the record {path} is damaged: {error!r}; adapt the users again") from error


def _match(row: Mapping[str, Any]) -> Match:
    return Match(
        str(row["user_id"]),
        tuple(map(str, row["anchor_ids"])),
        tuple(map(float, row["similarities"])),
        tuple(map(float, row["weights"])),
    )


def _file(folder: Path, name: str, user_id: str) -> Path:
    return folder / name / f"{safe_name(user_id)}.safetensors"
