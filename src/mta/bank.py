"""A bank of meta-LoRAs, one per anchor user, with the vectors by which targets find them (stage 1's result).

A bank is a folder: `bank.json` (what decided it, and its anchors), `adapters.safetensors` (all anchors' factors, one
stacked tensor per module), `vectors.safetensors`, optionally `population.safetensors` (one adapter beneath all).
Loading checks the files' checksums and the base model's fingerprint. `bank_building` makes banks.

Example:
    >>> bank = load_bank(Path("runs/demo/bank"), base=base)
    >>> bank.adapter(bank.anchor_ids[0]).rank
    8
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mta.anchors import DroppedCluster
from mta.base_model import BaseModel
from mta.config import BankConfig, MergeConfig, from_dict, to_dict
from mta.errors import BankError, DataError, MtaError, NotFound
from mta.files import read_json, seal_holds, sealed, sha256_json, write_json
from mta.lora.adapter import Adapter, AdapterSum, Factors, adapter_from_tensors, require_same_shape
from mta.merging import merge_terms
from mta.records import User
from mta.runtime import versions
from mta.tasks import get_task
from mta.tasks.task import Task
from mta.tensor_files import load_tensors, save_tensors, tensors_checksum

SCHEMA = 1
MANIFEST = "bank.json"
ADAPTERS = "adapters.safetensors"
VECTORS = "vectors.safetensors"
POPULATION = "population.safetensors"
SEAL = "manifest_checksum"
SHOWN_TARGETS = 5


@dataclass(frozen=True, slots=True)
class AnchorRecord:
    """One anchor of a bank."""

    user_id: str
    cluster: int
    history_size: int
    """History items of the anchor."""
    examples: int
    """Training examples."""
    source: str
    """How the examples were made."""
    data_fingerprint: str
    """Of the anchor's history, see `history_fingerprint`."""
    updates: int
    tokens: int
    last_loss: float
    held_out_losses: tuple[float, ...]
    retired: bool = False
    """Kept on disk but no longer matched."""


@dataclass(frozen=True, slots=True)
class Bank:
    """A loaded bank. Build one with `build_bank`, load one with `load_bank`."""

    folder: Path
    task: Task
    config: BankConfig
    base_name: str
    base_fingerprint: str
    anchors: tuple[AnchorRecord, ...]
    adapters: Mapping[str, Adapter] = field(repr=False)
    """anchor's user id -> meta-LoRA"""
    vectors: Tensor = field(repr=False)
    """(anchors, D) matching vectors, in the order of `anchors`"""
    matching_encoder: str
    """Fingerprint of the encoder that made `vectors`."""
    population: Adapter | None = field(repr=False)
    """Adapter beneath all anchors, or None."""
    checksum: str
    """Of all adapters; changes when any anchor does."""
    asked: int
    """Anchors asked for; `len(anchors)` were kept."""
    train_seconds: float
    """Wall time of training all of it."""
    population_updates: int = 0
    """That the adapter beneath the anchors took; 0 where there is none."""
    population_tokens: int = 0
    """That it saw."""

    @property
    def anchor_ids(self) -> tuple[str, ...]:
        """Ids of the anchors in use, in bank order."""
        return tuple(anchor.user_id for anchor in self.anchors if not anchor.retired)

    @property
    def active_vectors(self) -> Tensor:
        """Matching vectors of `anchor_ids`, (M, D)."""
        return self.vectors[[index for index, anchor in enumerate(self.anchors) if not anchor.retired]]

    def adapter(self, user_id: str) -> Adapter:
        """Return one anchor's meta-LoRA.

        Raises:
            NotFound: the bank has no such anchor.
        """
        if user_id not in self.adapters:
            raise NotFound(f"the bank has no anchor {user_id!r}; its anchors: {', '.join(self.adapters)}")
        return self.adapters[user_id]

    def merged(self, anchor_ids: Sequence[str], weights: Sequence[float], config: MergeConfig) -> AdapterSum:
        """Merge anchors, over the population adapter where the bank has one; `weights[k]` belongs to `anchor_ids[k]`.

        Raises:
            NotFound: the bank has no such anchor.
        """
        merged = merge_terms([self.adapter(name) for name in anchor_ids], weights, config)
        return AdapterSum(((1.0, self.population), *merged.terms)) if self.population else merged

    def check_base(self, base: BaseModel) -> None:
        """Check that this is the base model the bank was trained on.

        Raises:
            BankError: it is another one.
        """
        if base.fingerprint != self.base_fingerprint:
            raise BankError(
                f"the bank {self.folder} was trained on base model {self.base_name!r} (fingerprint "
                f"{self.base_fingerprint[:12]}), this is {base.name!r} ({base.fingerprint[:12]}); load "
                f"{self.base_name!r}, or build a bank for this one"
            )

    def check_targets(self, users: Sequence[User]) -> None:
        """Check that none of the users is an anchor, retired ones included, by id or under another name.

        An anchor would be matched to the adapter that was trained on the very history it is judged by.

        Raises:
            DataError: some are; the message counts them and names the first.
        """
        ids = {anchor.user_id: anchor.user_id for anchor in self.anchors}
        histories = {anchor.data_fingerprint: anchor.user_id for anchor in self.anchors}
        found = {
            user.user_id: anchor
            for user in users
            if (anchor := ids.get(user.user_id) or histories.get(history_fingerprint(user)))
        }
        if found:
            pairs = [f"{name!r} = anchor {anchor!r}" for name, anchor in islice(found.items(), SHOWN_TARGETS)]
            raise DataError(
                f"{len(found)} of {len(users)} target users are anchors of the bank {self.folder} ({', '.join(pairs)}"
                f"{', ...' if len(found) > SHOWN_TARGETS else ''}); wanted people the bank was not trained on; leave "
                "them out, or give the file of the targets (`mta data split` makes one)"
            )


def history_fingerprint(user: User) -> str:
    """Return a SHA-256 over a user's history, in order."""
    return sha256_json([[item.item_id, dict(item.fields), item.time] for item in user.history])


def adapters_checksum(adapters: Mapping[str, Adapter], population: Adapter | None) -> str:
    """Return a SHA-256 over a bank's adapters and what lies beneath them."""
    beneath = population.fingerprint() if population else None
    return sha256_json([[(name, adapter.fingerprint()) for name, adapter in adapters.items()], beneath])


def write_bank(bank: Bank, *, build_fingerprint: str, dropped: Sequence[DroppedCluster]) -> None:
    """Write a bank's files, the tensors first and the manifest last: a folder with a manifest is a whole bank."""
    stacked = stack_adapters(list(bank.adapters.values()))
    vectors = {"matching": bank.vectors}
    save_tensors(bank.folder / ADAPTERS, stacked)
    save_tensors(bank.folder / VECTORS, vectors)
    files = {ADAPTERS: tensors_checksum(stacked), VECTORS: tensors_checksum(vectors)}
    if bank.population:
        population = dict(bank.population.tensors())
        save_tensors(bank.folder / POPULATION, population)
        files[POPULATION] = tensors_checksum(population)
    manifest = {
        "schema": SCHEMA,
        "task": bank.task.task_id,
        "base": {"name": bank.base_name, "fingerprint": bank.base_fingerprint},
        "config": to_dict(bank.config),
        "matching_encoder": bank.matching_encoder,
        "asked": bank.asked,
        "kept": len(bank.anchors),
        "dropped_clusters": [asdict(cluster) for cluster in dropped],
        "anchors": [asdict(anchor) for anchor in bank.anchors],
        "checksum": bank.checksum,
        "files": files,
        "population": {"updates": bank.population_updates, "tokens": bank.population_tokens},
        "train_seconds": bank.train_seconds,
        "versions": versions(),
        "build_fingerprint": build_fingerprint,
    }
    _write_manifest(bank.folder, manifest)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with a checksum of itself, so that a damaged one is noticed."""
    write_json(folder / MANIFEST, sealed(manifest, key=SEAL))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a bank's manifest.

    Raises:
        BankError: it is damaged or of another schema.
        StorageError: there is none.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except DataError as error:
        raise BankError(f"{error}; build the bank again, or restore it from a copy") from error
    found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
    if found != SCHEMA:
        raise BankError(f"{path} has schema {found!r}, this version reads {SCHEMA}; build the bank again")
    if not seal_holds(manifest, key=SEAL):
        raise BankError(
            f"{path} is damaged or was edited: its checksum differs; build the bank again, or restore it from a copy"
        )
    return dict(manifest)


def stack_adapters(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Stack adapters of one shape into `<module>.A (M, r, d_in)` and `<module>.B (M, d_out, r)`.

    Where all A of a module are equal (a frozen shared A), one `(1, r, d_in)` is kept.
    """
    require_same_shape(adapters)
    stacked: dict[str, Tensor] = {}
    for name in adapters[0].modules:
        A = torch.stack([adapter.modules[name].A for adapter in adapters])
        stacked[f"{name}.A"] = A[:1].clone() if bool((A[:1] == A).all()) else A
        stacked[f"{name}.B"] = torch.stack([adapter.modules[name].B for adapter in adapters])
    return stacked


def unstack_adapters(stacked: Mapping[str, Tensor], count: int) -> list[Adapter]:
    """Undo `stack_adapters`; the adapters share memory with the stack."""
    names = [key.removesuffix(".B") for key in stacked if key.endswith(".B")]
    return [
        Adapter({name: Factors(_row(stacked[f"{name}.A"], index), stacked[f"{name}.B"][index]) for name in names})
        for index in range(count)
    ]


def _row(stack: Tensor, index: int) -> Tensor:
    return stack[0 if stack.shape[0] == 1 else index]


def load_bank(folder: Path | str, *, base: BaseModel | None = None) -> Bank:
    """Load a bank.

    Args:
        folder: a folder written by `build_bank`.
        base: the model it will be used with; None skips that check.

    Raises:
        BankError: it is damaged, incomplete, of a newer schema, or of another base model.
        StorageError: there is no such folder.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        bank = _from_manifest(folder, manifest)
    except BankError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MtaError) as error:
        raise BankError(f"the bank {folder} is damaged: {error}; build it again, or restore it from a copy") from error
    if base is not None:
        bank.check_base(base)
    return bank


def _from_manifest(folder: Path, manifest: Mapping[str, Any]) -> Bank:
    anchors = tuple(
        AnchorRecord(**{**anchor, "held_out_losses": tuple(anchor["held_out_losses"])})
        for anchor in manifest["anchors"]
    )
    stacked = _checked_tensors(folder, ADAPTERS, manifest)
    vectors = _checked_tensors(folder, VECTORS, manifest)["matching"]
    rows = {len(vectors), *(len(tensor) for name, tensor in stacked.items() if name.endswith(".B"))}
    if rows != {len(anchors)}:
        raise BankError(
            f"the bank {folder} is damaged: {MANIFEST} lists {len(anchors)} anchors, its files hold "
            f"{' or '.join(map(str, sorted(rows)))}; build it again, or restore it from a copy"
        )
    population, effort = None, {"updates": 0, "tokens": 0}
    if POPULATION in manifest["files"]:
        effort = _population_effort(folder, manifest)
        population = adapter_from_tensors(
            _checked_tensors(folder, POPULATION, manifest), where=str(folder / POPULATION)
        )
    adapters = dict(zip([a.user_id for a in anchors], unstack_adapters(stacked, len(anchors)), strict=True))
    return Bank(
        folder=folder,
        task=get_task(manifest["task"]),
        config=from_dict(BankConfig, manifest["config"]),
        base_name=manifest["base"]["name"],
        base_fingerprint=str(manifest["base"]["fingerprint"]),
        anchors=anchors,
        adapters=adapters,
        vectors=vectors,
        matching_encoder=manifest["matching_encoder"],
        population=population,
        checksum=manifest["checksum"],
        asked=manifest["asked"],
        train_seconds=float(manifest["train_seconds"]),
        population_updates=int(effort["updates"]),
        population_tokens=int(effort["tokens"]),
    )


def _population_effort(folder: Path, manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the updates and tokens of the training of the adapter beneath the anchors."""
    effort: dict[str, int] | None = manifest.get("population")
    if effort is None:
        raise BankError(
            f"the bank {folder} is of an earlier version, which did not keep what the training of {POPULATION} took; "
            "build it again"
        )
    return effort


def _checked_tensors(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read one of the bank's tensor files and hold it against the manifest's checksum."""
    tensors, _ = load_tensors(folder / name)
    if tensors_checksum(tensors) != manifest["files"][name]:
        raise BankError(
            f"{folder / name} does not belong to {folder / MANIFEST} (checksum differs); build the bank again"
        )
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise BankError(f"{folder / name}: tensor {key} holds NaN or infinity; build the bank again")
    return tensors


def retire_anchor(bank: Bank, user_id: str) -> Bank:
    """Take an anchor out of matching, keeping its files; writes the manifest and returns the bank without it.

    Raises:
        NotFound: the bank has no such anchor.
        BankError: it is the last one.
    """
    bank.adapter(user_id)
    if set(bank.anchor_ids) <= {user_id}:
        raise BankError(f"{user_id!r} is the last anchor of {bank.folder}; a bank needs one")
    anchors = tuple(replace(a, retired=True) if a.user_id == user_id else a for a in bank.anchors)
    manifest = read_manifest(bank.folder)
    _write_manifest(bank.folder, {**manifest, "anchors": [asdict(anchor) for anchor in anchors]})
    return replace(bank, anchors=anchors)
