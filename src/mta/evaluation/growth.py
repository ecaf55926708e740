"""Figure 2 of the paper, measured: training time and stored bytes against the number of users, for MTA and OPPU.

    growth/mta-all-linear/    bank/, adapters/mta/ (a file a user), matches/ (each user's anchors and weights)
           oppu-all-linear/   adapters/oppu/
           mta-q-v/  oppu-q-v/
           growth.json        the points, and from which number of users on one is cheaper than the other
           table.md

Every user is trained once. Users join in groups (the first 5, the next 5, ...), and a point is the sum of the groups up
to it, for MTA over the time and the files of its bank. Time is that of training, merging included, and for MTA that of
matching; loading models, making prompts and choosing the anchors are not counted. Bytes are those of the files.

A killed call continues with the same call and keeps what was measured; further numbers of users can be added later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product
from math import floor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from mta.bank import Bank, history_fingerprint, read_manifest
from mta.base_model import BaseModel
from mta.baselines.oppu import OppuConfig, oppu
from mta.config import ALL_LINEAR, QUERY_VALUE, to_dict
from mta.errors import ConfigError, DataError
from mta.evaluation.folders import GROWTH, are_of, read_earlier, refuse_other_results
from mta.evaluation.formats import format_cost
from mta.evaluation.run import open_run
from mta.evaluation.run_config import RunConfig
from mta.evaluation.scores_file import finite
from mta.files import folder_if_used, read_json, safe_name, sha256_json, write_json, write_text
from mta.folder_lock import alone_in_folder
from mta.merging import Match
from mta.personalize import PersonalizedUsers, Resources, adapt_over, match_users, merged_recipe
from mta.progress import Progress, silent
from mta.records import User
from mta.runtime import versions
from mta.tensor_files import count_values
from mta.training_store import adapter_path, without_time

log = logging.getLogger(__name__)

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType({"all-linear": ALL_LINEAR, "q,v": QUERY_VALUE})
"""Name in the table -> layers with an adapter, in the bank and of every user."""
BYTES_PER_VALUE = 4
COST_MEASURES = ("seconds", "bytes")
MATCHING = "matching.json"
TIME, SIZE = "train_seconds", "adapter_bytes_per_user"
"""Costs as `format_cost` knows them, for the unit."""
COUNTED = (
    "training of every user once, merging and matching included, over the bank's training; without loading models, "
    "making prompts and choosing anchors. Bytes of the files; beside them 4 bytes for every stored value"
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What some users cost together, or a bank."""

    users: int = 0
    train_seconds: float = 0.0
    match_seconds: float = 0.0
    file_bytes: int = 0
    values: int = 0
    """Numbers in the stored tensors."""
    updates: int = 0
    not_adapted: int = 0
    """Users who got no adapter of their own."""

    @property
    def seconds(self) -> float:
        """Training and matching."""
        return self.train_seconds + self.match_seconds

    def plus(self, other: Cost) -> Cost:
        """Return what both cost together."""
        mine, theirs = asdict(self), asdict(other)
        return Cost(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True, slots=True)
class _Trained:
    """A group of users after training."""

    people: PersonalizedUsers
    folder: Path
    """Of the adapters."""
    matches: list[Path]
    match_seconds: float

    @property
    def adapted(self) -> list[str]:
        """Users who have an adapter."""
        return [user_id for user_id, person in self.people.users.items() if person.updates]

    @property
    def adapters(self) -> list[Path]:
        """Files of theirs."""
        return [adapter_path(self.folder, user_id) for user_id in self.adapted]


Train = Callable[[Sequence[User], Resources], _Trained]


@alone_in_folder
def measure_growth(
    pool: Sequence[User],
    targets: Sequence[User],
    config: RunConfig,
    folder: Path,
    *,
    users: Sequence[int],
    base: BaseModel | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train the first users with MTA and OPPU, on all linear layers and on query and value, and add up what it costs.

    Args:
        pool: users for the banks.
        targets: users to serve; the first of them are trained.
        config: settings of bank, adaptation and packing; its methods, seeds and target modules play no part.
        folder: where everything goes; a killed call continues from it.
        users: numbers of users at which time and bytes are read off.
        base: the loaded base model, if the caller has it.
        notes: further rows for the run card.
        progress: told about each stage.

    Returns:
        The content of growth.json.

    Raises:
        ConfigError: a number of users that cannot be, or a folder that holds something else.
        DataError: see `run`.
    """
    started = time.monotonic()
    refuse_other_results(folder, "growth")
    _counts(users, len(targets))
    counts = _counts([*users, *_earlier_counts(folder, config, len(targets))], len(targets))
    groups = [targets[first:end] for first, end in pairwise([0, *counts])]
    points: list[dict[str, Any]] = []
    anchors = {}
    with folder_if_used(folder):
        for name, modules in TARGETS.items():
            resources = open_run(
                pool, targets, _on_modules(config, modules), folder / f"mta-{_slug(name)}", base=base, progress=progress
            )
            base, bank = resources.base, resources.need_bank()
            anchors[name] = f"{bank.asked} / {len(bank.anchors)}"
            points += _points(f"mta {name}", _train_mta, groups, resources, bank=_bank_cost(bank))
            alone = replace(resources, folder=folder / f"oppu-{_slug(name)}" / "adapters", bank=None, pool=())
            points += _points(f"oppu {name}", _train_oppu, groups, alone)
    card = {
        "pool users": len(pool),
        "target users": f"the first {counts[-1]} of {len(targets)}",
        "anchors asked / kept": anchors,
        "wall seconds of this call": round(time.monotonic() - started, 1),
        **_card(config, resources.base),
    }
    result = {
        "task": resources.task.task_id,
        "base": config.base,
        "points": points,
        "break_even": break_even(points),
        "run": {**(notes or {}), **card},
    }
    write_json(folder / GROWTH, result)
    write_text(folder / "table.md", markdown_growth(result) + "\n")
    return result


def _card(config: RunConfig, base: BaseModel) -> dict[str, Any]:
    return {
        "counted": COUNTED,
        "base model": {"name": base.name, "fingerprint": base.fingerprint, "dtype": str(base.dtype)},
        "device": str(base.device),
        "threads": torch.get_num_threads(),
        "settings": to_dict(config),
        "versions": versions(),
    }


def _earlier_counts(folder: Path, config: RunConfig, most: int) -> list[int]:
    """Return the numbers of users of earlier calls with the same settings, as far as there are as many users."""
    earlier = read_earlier(folder / GROWTH)
    if not are_of(to_dict(config), earlier, where=folder):
        return []
    points = earlier.get("points")
    rows = [point for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    return [count for row in rows if isinstance(count := row.get("users"), int) and 1 <= count <= most]


def _counts(users: Sequence[int], most: int) -> list[int]:
    counts = sorted(set(users))
    if not counts or counts[0] < 1 or counts[-1] > most:
        raise ConfigError(
            f"the numbers of users are {', '.join(map(str, users)) or 'none'}; wanted at least one, each from 1 to "
            f"{most}, as many target users as there are - name other numbers, or give a file with more users"
        )
    return counts


def _slug(name: str) -> str:
    return name.replace(",", "-")


def _on_modules(config: RunConfig, modules: tuple[str, ...]) -> RunConfig:
    """Return the settings with adapters on these layers in every stage."""
    bank = replace(
        config.bank,
        train=replace(config.bank.train, target_modules=modules),
        population_train=replace(config.bank.population_train, target_modules=modules),
    )
    adapt = replace(config.adapt, target_modules=modules)
    return replace(config, bank=bank, adapt=adapt, methods=("mta",), seeds=())


def _points(
    name: str, train: Train, groups: Sequence[Sequence[User]], resources: Resources, *, bank: Cost | None = None
) -> Iterator[dict[str, Any]]:
    """Train the groups one after the other and yield what all users so far cost."""
    bank = bank or Cost()
    own = Cost()
    for group in groups:
        own = own.plus(_group_cost(train, group, resources))
        total = own.plus(bank)
        yield {
            "method": name,
            "users": own.users,
            "seconds": total.seconds,
            "bytes": total.file_bytes,
            "bank_seconds": bank.seconds,
            "bank_bytes": bank.file_bytes,
            "match_seconds": own.match_seconds,
            "counted_bytes": BYTES_PER_VALUE * total.values,
            "updates_per_user": own.updates / own.users,
            "not_adapted": own.not_adapted,
        }


def _bank_cost(bank: Bank) -> Cost:
    files = sorted(path for path in bank.folder.rglob("*") if path.is_file())
    return Cost(
        train_seconds=float(read_manifest(bank.folder)["train_seconds"]),
        file_bytes=sum(path.stat().st_size for path in files),
        values=sum(count_values(path) for path in files if path.suffix == ".safetensors"),
    )


def _group_cost(train: Train, users: Sequence[User], resources: Resources) -> Cost:
    made = train(users, resources)
    if again := without_time(made.folder, made.adapted, resources.base):
        log.warning("training %d users again: how long it took was not written down", len(again))
        for user_id in again:
            adapter_path(made.folder, user_id).unlink()
        made = train(users, resources)
    return Cost(
        users=len(users),
        train_seconds=made.people.train_seconds,
        match_seconds=made.match_seconds,
        file_bytes=sum(path.stat().st_size for path in (*made.adapters, *made.matches)),
        values=sum(map(count_values, made.adapters)),
        updates=sum(person.updates for person in made.people.users.values()),
        not_adapted=len(users) - len(made.adapters),
    )


def _train_oppu(users: Sequence[User], resources: Resources) -> _Trained:
    config = OppuConfig(target_modules=resources.adapt.target_modules)
    people = oppu(users, resources, config=config, name="oppu")
    return _Trained(people, resources.folder / "oppu", [], 0.0)


def _train_mta(users: Sequence[User], resources: Resources) -> _Trained:
    bank = resources.need_bank()
    matches, seconds = _matches(users, resources)
    beneath = {name: merged_recipe(match, bank, resources.merge) for name, match in matches.items()}
    people = adapt_over(users, resources, beneath=beneath, matches=matches, name="mta")
    files = []
    for name, match in matches.items():
        files.append(resources.folder.parent / "matches" / f"{safe_name(name)}.json")
        write_json(files[-1], {"anchor_ids": match.anchor_ids, "weights": match.weights})
    return _Trained(people, resources.folder / "mta", files, seconds)


def _matches(users: Sequence[User], resources: Resources) -> tuple[dict[str, Match], float]:
    """Match users, and return the seconds it took without any vectors from before, here or in an earlier call."""
    path = resources.folder.parent / MATCHING
    settings = [resources.need_bank().checksum, to_dict(resources.match), to_dict(resources.merge)]
    wanted = {user.user_id: sha256_json([settings, history_fingerprint(user)]) for user in users}
    kept = _kept_seconds(path)
    known: list[User] = []
    new: list[User] = []
    for user in users:
        done = kept.get(user.user_id, {}).get("fingerprint") == wanted[user.user_id]
        (known if done else new).append(user)
    matches = match_users(known, resources) if known else {}
    if new:
        started = time.monotonic()
        matches |= match_users(new, replace(resources, cache=None))
        share = (time.monotonic() - started) / len(new)
        kept |= {user.user_id: {"fingerprint": wanted[user.user_id], "seconds": share} for user in new}
        write_json(path, kept)
    return matches, sum(float(kept[user.user_id]["seconds"]) for user in users)


def _kept_seconds(path: Path) -> dict[str, dict[str, Any]]:
    """Read what matching took each user in earlier calls; {} where there is nothing or the file is damaged."""
    try:
        found = read_json(path) if path.exists() else {}
    except DataError as error:
        log.warning("matching again: %s", error)
        found = {}
    rows = found.items() if isinstance(found, dict) else ()
    return {name: row for name, row in rows if isinstance(row, dict) and finite(row.get("seconds")) is not None}


def break_even(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say from how many users on MTA costs less than OPPU, by the cost of a user measured over all users.

    With F for the bank and m and o for a user under MTA and OPPU, MTA costs less where F + n m < n o, so for
    n > F / (o - m); never where m is not below o. Where the costs of a user in the groups of one overlap those of the
    other, the difference is within what one measurement differs from the next, and no number is given.

    Args:
        points: of growth.json.

    Returns:
        A row for each measure and pair: the three costs, the smallest such number of users ("users", None for
        never), and a sentence that says it.
    """
    of: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:  # the points of a method ascend
        of.setdefault(point["method"], []).append(point)
    ours, theirs = ([name for name in of if name.startswith(start)] for start in ("mta ", "oppu "))
    return [_break_even(measure, of[a], of[b]) for measure, a, b in product(COST_MEASURES, ours, theirs)]


def costs_per_user(points: Sequence[Mapping[str, Any]], measure: str) -> list[float]:
    """Return what a user of each group costs, the bank not counted, from the ascending points of one method."""
    sums = [(0, 0.0), *((point["users"], point[measure] - point[f"bank_{measure}"]) for point in points)]
    return [(after - before) / (users - fewer) for (fewer, before), (users, after) in pairwise(sums)]


def _break_even(measure: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mta, rival = ours[-1], theirs[-1]
    bank = mta[f"bank_{measure}"]
    own, other = (mta[measure] - bank) / mta["users"], rival[measure] / rival["users"]
    mine, its = costs_per_user(ours, measure), costs_per_user(theirs, measure)
    apart = max(mine) < min(its) or max(its) < min(mine)
    users = floor(bank / (other - own)) + 1 if own < other and apart else None
    does, shown = ("trains in less time", TIME) if measure == "seconds" else ("stores less", SIZE)
    costs = f"{format_cost(shown, bank)} once and {format_cost(shown, own)} a user against {format_cost(shown, other)}"
    beyond = f", beyond the {mta['users']} measured" if users and users > mta["users"] else ""
    when = f"from {users} {'user' if users == 1 else 'users'} on{beyond}" if users else "for no number of users"
    if not apart:
        when = "for no number of users that can be told, as the costs of a user overlap between groups"
    return {
        "measure": measure,
        "mta": mta["method"],
        "oppu": rival["method"],
        "bank": bank,
        "mta_per_user": own,
        "oppu_per_user": other,
        "users": users,
        "statement": f"{mta['method']} {does} than {rival['method']} {when}: {costs}.",
    }


def markdown_growth(result: Mapping[str, Any]) -> str:
    """Return growth.json as a table with the sentences on who is cheaper from when on."""
    head = (
        "method",
        "users",
        "training time",
        "of it the bank",
        "stored",
        "of it the bank",
        "4 bytes a value",
        "updates / user",
    )
    lines = [f"{result['task']}, base {result['base']}: {COUNTED}.", "", _row(head), _row(["---", *["---:"] * 7])]
    for point in result["points"]:
        times = [format_cost(TIME, point[name]) for name in ("seconds", "bank_seconds")]
        sizes = [format_cost(SIZE, point[name]) for name in ("bytes", "bank_bytes", "counted_bytes")]
        updates = format_cost("updates_per_user", point["updates_per_user"])
        lines.append(_row([point["method"], point["users"], *times, *sizes, updates]))
    skipped = {point["method"]: point["not_adapted"] for point in result["points"] if point["not_adapted"]}
    lines += ["", *(f"{count} users of {name} have no adapter of their own." for name, count in skipped.items())]
    lines += ["", *(f"- {row['statement']}" for row in result["break_even"])]
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
