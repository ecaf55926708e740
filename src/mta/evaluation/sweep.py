"""One setting varied, everything else equal: figures 3 to 6 of the paper, with the same statistics as any run.

Every point is compared, by the paired test, with the point that changes nothing, or else with the lowest value.

    sweep/bank/             one bank for all points; of another size it lies in points/<value>/bank
          anchors/          trained anchors that banks of several sizes share
          points/<value>/   settings and adapters of one point
          predictions/      one file a point
          scores.json       as of a run whose methods are the points; `sweep` says what was varied
          table.md  table.csv  predictions.jsonl

A killed sweep continues with the same call; a call with further values adds them to the table.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mta.base_model import BaseModel
from mta.baselines.methods import PARTS, depends_on_seed, find_method
from mta.baselines.roles import stem_of
from mta.config import to_dict
from mta.data.people import person_names, rule_for
from mta.errors import ConfigError, unknown_name
from mta.evaluation.answers import method_record
from mta.evaluation.folders import SCORES, are_of, read_earlier, refuse_other_results
from mta.evaluation.predictions_file import write_predictions
from mta.evaluation.run import open_run
from mta.evaluation.run_card import run_card
from mta.evaluation.run_config import RunConfig
from mta.evaluation.scores import MethodRecord, build_scores
from mta.evaluation.table import csv_table, markdown_comparisons, markdown_table
from mta.files import write_json, write_text
from mta.folder_lock import alone_in_folder
from mta.merging import check_weights
from mta.personalize import Resources
from mta.progress import Progress, silent
from mta.records import User

log = logging.getLogger(__name__)

AS_ASKED = "as asked"
"""Name of the point without the change: the weights of Eq. 6, against fixed ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One setting that can be varied."""

    title: str
    """For the axis of a plot."""
    figure: str
    """The paper's figure."""
    usual: tuple[float, ...]
    """Values where none are named; those of the paper, as far as it gives them."""
    change: Callable[[RunConfig, float], RunConfig]
    """Settings, value -> the settings of the point."""
    whole: bool = True
    """Values are whole numbers."""
    own_bank: bool = False
    """Every point has a bank of its own."""
    reference: bool = False
    """There is a point without the change to compare with."""


def _weight(config: RunConfig, value: float) -> RunConfig:
    return replace(config, merge=replace(config.merge, weights="fixed", first_weight=value))


def _top_k(config: RunConfig, value: float) -> RunConfig:
    return replace(config, top_k=int(value))


def _rank(config: RunConfig, value: float) -> RunConfig:
    return replace(config, adapt=replace(config.adapt, rank=int(value), alpha=config.adapt.scaling * int(value)))


def _bank_size(config: RunConfig, value: float) -> RunConfig:
    return replace(config, bank=replace(config.bank, anchors=replace(config.bank.anchors, bank_size=int(value))))


SWEEPS: Mapping[str, Sweep] = MappingProxyType(
    {
        "weight": Sweep(
            title="weight of the nearest anchor",
            figure="Figure 3",
            usual=tuple(step / 10 for step in range(11)),
            change=_weight,
            whole=False,
            reference=True,
        ),
        "top-k": Sweep(title="merged anchors K", figure="Figure 4", usual=tuple(range(1, 9)), change=_top_k),
        "rank": Sweep(title="rank of the user's adapter", figure="Figure 5", usual=(2, 4, 6, 8, 16), change=_rank),
        "bank-size": Sweep(
            title="anchors asked for",
            figure="Figure 6",
            usual=(50, 60, 70, 80, 90, 100),
            change=_bank_size,
            own_bank=True,
        ),
    }
)


RIVALS_FOLLOW: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "population": ("bank-size",),
        "population-adapt": ("bank-size", "rank"),
        "population-matched-adapt": ("bank-size", "rank"),
        "oppu": (),
        "oppu-k0": (),
        "oppu-qv": (),
        "oppu-task": ("bank-size",),
        "oppu-k0-task": ("bank-size",),
        "per-pcs": ("bank-size",),
        "per-pcs-task": ("bank-size",),
        "proper": ("bank-size", "rank", "top-k"),
    }
)
"""Row that is none of `PARTS` -> the settings it changes with; one that is in neither table may change with all."""


def find_sweep(name: str) -> Sweep:
    """Return the sweep called `name`.

    Raises:
        NotFound: there is none; the message lists those there are.
    """
    if name not in SWEEPS:
        raise unknown_name("sweep", name, SWEEPS)
    return SWEEPS[name]


@alone_in_folder
def run_sweep(
    pool: Sequence[User],
    targets: Sequence[User],
    config: RunConfig,
    folder: Path,
    *,
    over: str,
    values: Sequence[float] = (),
    method: str = "mta",
    base: BaseModel | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Answer and score the targets' queries once for each value of one setting.

    Args:
        pool: users for the bank.
        targets: users to serve, with queries and gold answers.
        config: everything that is not varied; its methods and seeds play no part.
        folder: where everything goes; a killed sweep continues from it.
        over: what is varied, a name in `SWEEPS`.
        values: values tried, beside those of earlier calls with the same settings; the usual ones where none are named.
        method: the method whose scores are compared.
        base: the loaded base model, if the caller has it.
        notes: further rows for the run card.
        progress: told about each stage.

    Returns:
        The content of scores.json: one method a point.

    Raises:
        ConfigError: the method does not depend on the setting, a value it cannot have, more anchors than the bank has,
            or a folder with other results.
        DataError: see `run`.
    """
    started = time.monotonic()
    sweep, asked = find_sweep(over), find_method(method)
    if not _has_effect(over, method):
        raise ConfigError(
            f"{method} does not depend on {over}, so all points would be equal; sweep mta, or another setting"
        )
    config = replace(config, methods=(method,), seeds=())
    values = values or _usual_values(sweep, pool)
    _points(sweep, over, values, config, pool)
    points = _points(sweep, over, [*_earlier_values(folder, over, method, config), *values], config, pool)
    records: dict[str, MethodRecord] = {}
    had: dict[str, Resources] = {}
    for label, changed in sorted(points.items(), key=lambda point: -point[1].top_k):  # too large a K is refused first
        place = folder / "points" / label
        resources = open_run(
            pool,
            targets,
            changed,
            place,
            base=base,
            bank_folder=None if sweep.own_bank else folder / "bank",
            work=folder / "anchors" if sweep.own_bank else None,
            progress=progress,
        )
        base, had[label] = resources.base, resources
        records[label] = method_record(label, asked, targets, resources, folder)
    rows = [records[label] for label in points]
    reference, *others = [AS_ASKED] * sweep.reference + [label for label in points if label != AS_ASKED]
    task = config.task
    scores = build_scores(
        task.task_id,
        rows,
        base=config.base,
        seeds=[config.adapt.seed],
        metrics=task.metrics,
        labels=task.labels,
        people=person_names(targets, rule=rule_for(task.task_id)),
        comparisons=[(reference, label) for label in others],
    )
    scores["sweep"] = {
        "over": over,
        "title": sweep.title,
        "figure": sweep.figure,
        "method": method,
        "values": {label: float(label) for label in points if label != AS_ASKED},
    }
    seconds = time.monotonic() - started
    scores["run"] = {**(notes or {}), **run_card(config, [had[label] for label in points], targets, scores, seconds)}
    _write(folder, scores, rows)
    return scores


def _has_effect(over: str, method: str) -> bool:
    """Tell whether a method may change with a setting."""
    if not depends_on_seed(method):
        return False
    stem = stem_of(method)
    parts = PARTS.get(stem)
    if parts is None:
        return over in RIVALS_FOLLOW.get(stem, (over,))
    if over == "rank":
        return parts.adapted
    return parts.merged and not (over == "weight" and parts.weights)


def _earlier_values(folder: Path, over: str, method: str, config: RunConfig) -> list[float]:
    """Return the values of earlier calls with the same settings."""
    refuse_other_results(folder, "sweep")
    scores = read_earlier(folder / SCORES)
    earlier = scores.get("sweep")
    if not isinstance(earlier, dict):
        return []
    if (held := f"{earlier.get('over')} of {earlier.get('method')}") != (asked := f"{over} of {method}"):
        raise ConfigError(f"{folder} holds a sweep over {held}, not over {asked}; choose another folder")
    values = earlier.get("values", {}).values()
    return list(values) if are_of(to_dict(config), scores, where=folder) else []


def _usual_values(sweep: Sweep, pool: Sequence[User]) -> tuple[float, ...]:
    """Return the values to try where none are named; banks as large as the pool allows."""
    if not sweep.own_bank:
        return sweep.usual
    users = _with_history(pool)
    fit = tuple(size for size in sweep.usual if size <= users)
    if not fit:
        raise ConfigError(
            f"the usual bank sizes are {_listed(sweep.usual)}, and the pool has {users} users with a history; name "
            "smaller ones with --value"
        )
    if left_out := sweep.usual[len(fit) :]:
        log.warning("left out bank sizes above %d, the users of the pool: %s", users, _listed(left_out))
    return fit


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _with_history(pool: Sequence[User]) -> int:
    return sum(bool(user.history) for user in pool)


def _points(
    sweep: Sweep, over: str, values: Sequence[float], config: RunConfig, pool: Sequence[User]
) -> dict[str, RunConfig]:
    """Return the settings of every point by its label; refuses what cannot be before anything is trained."""
    points: dict[str, RunConfig] = {}
    for value in sorted(set(values)):
        if sweep.whole and not float(value).is_integer():
            raise ConfigError(f"{over} is {value}; it must be a whole number, for example 4")
        points[f"{int(value) if sweep.whole else value:g}"] = changed = sweep.change(config, value)
        check_weights(changed.merge, top_k=changed.top_k)
    largest = max(one.top_k for one in points.values())
    smallest = min(one.bank.anchors.bank_size for one in points.values())
    if largest > smallest:
        raise ConfigError(
            f"top_k is {largest}, more than the {smallest} anchors the smallest bank is asked to have; lower --top-k "
            "or the values, or raise --bank-size"
        )
    largest_bank = max(one.bank.anchors.bank_size for one in points.values())
    if largest_bank > (users := _with_history(pool)):
        raise ConfigError(
            f"the largest bank is asked to have {largest_bank} anchors, and the pool has {users} users with a history; "
            "lower the values or --bank-size, or give a larger pool"
        )
    if over == "weight" and config.top_k == 1:
        raise ConfigError(
            "the weight of the nearest of one anchor is 1 at every point; merge more anchors with --top-k"
        )
    return {**points, AS_ASKED: config} if sweep.reference else points


def _write(folder: Path, scores: dict[str, Any], records: Sequence[MethodRecord]) -> None:
    write_predictions(folder / "predictions.jsonl", {record.name: record.predictions for record in records})
    write_json(folder / SCORES, scores)
    write_text(
        folder / "table.md", "\n".join(filter(None, [markdown_table(scores), markdown_comparisons(scores)])) + "\n"
    )
    write_text(folder / "table.csv", csv_table(scores))
