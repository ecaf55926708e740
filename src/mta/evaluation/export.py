"""One user's whole adapter out of a run folder, as a plain LoRA that other tools read.

Example:
    >>> export_user(Path("runs/demo"), "target-000", Path("target-000-peft"))
"""

from __future__ import annotations

from pathlib import Path

from mta.bank import Bank, load_bank
from mta.errors import NotFound, unknown_name
from mta.evaluation.restore import MERGED, STORED, AdapterSettings, read_settings, stored_adapter
from mta.lora.adapter import Adapter, cat
from mta.lora.peft_format import write_peft
from mta.personalize import merged_recipe

METHODS = ("mta", "merged-only", "adapt-only")


def export_user(run: Path, user_id: str, folder: Path, *, method: str = "mta") -> Adapter:
    """Write one user's whole adapter as a PEFT folder and return it.

    Args:
        run: folder of a run.
        user_id: one of the run's target users.
        folder: where the PEFT files go.
        method: "mta", "merged-only" or "adapt-only".

    Raises:
        NotFound: no such user or method, or the user has no adapter there.
        AdapterError: the adapter is damaged, or of another base model than the bank.
        BankError: the bank is damaged.
    """
    bank = load_bank(run / "bank")
    adapter = whole_adapter(run, user_id, bank=bank, method=method)
    write_peft(adapter, folder, base_model=bank.base_name)
    return adapter


def whole_adapter(run: Path, user_id: str, *, bank: Bank, method: str = "mta") -> Adapter:
    """Rebuild everything a user has on top of the base model from a run folder; see `export_user`."""
    if method not in METHODS:
        raise unknown_name("method to export", method, METHODS)
    settings = read_settings(run / "adapters", method)
    parts = [merged_recipe(settings.match(user_id), bank, settings.merge).make()] if method in MERGED else []
    if method in STORED:
        parts += _own(run, user_id, method, settings, bank)
    if not parts:
        raise NotFound(f"user {user_id!r} has no {method} adapter in {run}; export merged-only instead")
    return cat(parts)


def _own(run: Path, user_id: str, method: str, settings: AdapterSettings, bank: Bank) -> list[Adapter]:
    own = stored_adapter(run / "adapters", user_id, method, settings, base_fingerprint=bank.base_fingerprint)
    return [own] if own else []
