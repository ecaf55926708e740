"""People's adapters as plain LoRA folders, for engines that serve at a larger scale.

An engine holds adapters in slots of a fixed rank; a person's anchors and own part together may have a larger one, and
are then cut to it: how much of the delta is lost is said.

Example:
    >>> handed = export_person(composition, user, Path("out"), base_model="smollm2-135m", rank_budget=16)
    >>> handed.folder, handed.rank, handed.lost
    ('ada@3', 16, 0.0021)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mta.files import make_folder, safe_name
from mta.lora.adapter import map_tensors, truncate
from mta.lora.peft_format import write_peft
from mta.serving.composition import Composition
from mta.serving.user_store import StoredUser

INDEX = "users.json"
"""Who is in which folder."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """One person's exported adapter."""

    user: str
    folder: str
    """Within the folder of all."""
    revision: int
    """0: anchors merged, no own part."""
    rank: int
    exact_rank: int
    """Of all that it is made of."""
    lost: float
    """Share of the delta's squared norm that was cut off; 0 is exact."""


def export_person(
    composition: Composition, user: StoredUser, folder: Path, *, base_model: str, rank_budget: int | None
) -> HandedOver | None:
    """Write a person's whole adapter as one PEFT folder of its own; None where nothing is known of her.

    The folder's name holds the revision, since engines keep what they have computed by an adapter's name.

    Args:
        composition: finds its parts.
        user: whose.
        folder: of all; made if missing.
        base_model: as the loader will know it.
        rank_budget: largest rank; None keeps all of it.

    Raises:
        AdapterError: her own part is damaged.
        BankError: she has a history and no anchors were found for it yet, and there is no encoder.
    """
    found = composition.whole(user)
    if found is None:
        return None
    whole = map_tensors(found.adapter.whole(), lambda tensor: tensor.float())
    small, lost = whole, 0.0
    if rank_budget is not None and whole.rank > rank_budget:
        small, lost = truncate(whole, rank_budget)
    own = f"{safe_name(user.name)}@{found.revision}"
    make_folder(folder)
    write_peft(small, folder / own, base_model=base_model)
    return HandedOver(user.name, own, found.revision, small.rank, whole.rank, lost)


def index_of(handed: Sequence[HandedOver]) -> list[dict[str, Any]]:
    """Return what was handed over, as the index lists it."""
    return [asdict(one) for one in handed]
