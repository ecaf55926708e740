"""One user's whole adapter out of a run folder: to answer with, or as a plain LoRA that other tools read.

Example:
    >>> me = load_user(user, run=Path("runs/demo"), base=base)
    >>> export_user(Path("runs/demo"), "target-000", Path("target-000-peft")).adapter.rank
    20
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mta.bank import Bank, load_bank
from mta.base_model import BaseModel
from mta.baselines.methods import PARTS
from mta.errors import NotFound, unknown_name
from mta.evaluation.folders import refuse_repeats
from mta.evaluation.restore import AdapterSettings, read_settings, stored_adapter
from mta.lora.adapter import Adapter, cat, recipe
from mta.lora.peft_format import write_peft
from mta.personalize import Personalized, merged_recipe, renderer
from mta.records import User


@dataclass(frozen=True, slots=True)
class Exported:
    """A user's whole adapter."""

    adapter: Adapter
    note: str
    """Why the user's own part is missing, or ""."""


def load_user(user: User, *, run: Path, base: BaseModel, method: str = "mta") -> Personalized:
    """Load a user as a run served her, without training anything.

    Args:
        user: one of the run's target users, read from the same file.
        run: folder of a run.
        base: the base model of the run.
        method: one of `PARTS` that the run has answered with.

    Raises:
        NotFound, DataError, AdapterError, BankError: see `export_user`.
        DataError: the adapter was trained on another history than this user's, who has queries to be scored.
        ConfigError: the run was repeated under several seeds, and none of them is named.
    """
    refuse_repeats(run)
    bank = load_bank(run / "bank", base=base)
    settings = _settings(run / "adapters", method)
    settings.check_history(user)
    found = whole_adapter(run / "adapters", user.user_id, bank=bank, method=method)
    return Personalized(
        user=user,
        task=bank.task,
        adapter=recipe(found.adapter),
        render=renderer(bank.task, bank.config.prompts),
        prompts=bank.config.prompts,
        match=settings.matches.get(user.user_id),
        note=found.note,
    )


def export_user(
    run: Path, user_id: str, folder: Path, *, method: str = "mta", bank_folder: Path | None = None
) -> Exported:
    """Write one user's whole adapter, the one the run answered with, as a PEFT folder and return it.

    Args:
        run: folder of a run; with `bank_folder`, a folder of adapters as `mta adapt` writes it.
        user_id: one of the run's target users.
        folder: where the PEFT files go.
        method: one of `PARTS` that the run has answered with. The merged anchors beneath adapters of "mta" are there as
            "merged-only" too.
        bank_folder: the bank beneath the adapters, where it is not the run's own.

    Raises:
        NotFound: no such user or method, or the user has no adapter there.
        DataError: the run did not answer with this method, or its record is damaged.
        AdapterError: the adapter is damaged, not the one the run answered with, or of another base model than the bank.
        BankError: the bank is damaged, or not the one the run answered with.
        ConfigError: the run was repeated under several seeds, and none of them is named.
    """
    refuse_repeats(run)
    bank = load_bank(bank_folder or run / "bank")
    adapters = run if bank_folder else run / "adapters"
    found = whole_adapter(adapters, user_id, bank=bank, method=method)
    write_peft(found.adapter, folder, base_model=bank.base_name)
    return found


def whole_adapter(adapters: Path, user_id: str, *, bank: Bank, method: str = "mta") -> Exported:
    """Rebuild everything a user has on top of the base model from a folder of adapters; see `export_user`."""
    settings = _settings(adapters, method)
    parts = PARTS[method]
    found: list[Adapter] = []
    beneath = None
    if parts.merged:
        settings.check_bank(bank, adapters)
        beneath = merged_recipe(settings.match(user_id), bank, settings.merge).parts()
        found.append(beneath.whole())
    if parts.adapted:
        own = stored_adapter(
            adapters, user_id, method, settings, base_fingerprint=bank.base_fingerprint, beneath=beneath
        )
        found += [own] if own else []
    note = settings.skipped.get(user_id, "") if parts.adapted else ""
    if not found:
        raise NotFound(f"user {user_id!r} has no {method} adapter in {adapters}: {note}; export merged-only instead")
    return Exported(cat(found), note)


def _settings(adapters: Path, method: str) -> AdapterSettings:
    """Read a method's record; one that only merges may have that of the method that adapts on top of the same merge."""
    if method not in PARTS:
        raise unknown_name("method that keeps adapters", method, PARTS)
    parts = PARTS[method]
    alike = [name for name, other in PARTS.items() if replace(other, adapted=parts.adapted) == parts]
    names = [method] if parts.adapted else [method, *alike]
    return read_settings(adapters, next((name for name in names if (adapters / f"{name}.json").exists()), method))
