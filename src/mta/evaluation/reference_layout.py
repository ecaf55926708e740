"""A finished run as the folder tree of the authors' scripts, for tools that read those files.

    data/<slug>/anchor_user_data.jsonl                           the anchors' records
    dense_retrieval_results/<slug>/matches_results.json          each user's anchors
    merge_lora/hybrid_<slug>/merge_lora_<user>/                  the merged anchors, a PEFT folder
    adapt_lora/hybrid_<slug>/adapt_lora_<user>/                  the user's own adapter alone, a PEFT folder
    final_eval_results/hybrid_<slug>/results_<user>_alpha_<weight>.json   (headlines: result_user_<user>.json)
    final_eval_results/hybrid_<slug>/final_aggregated_results_<slug>.json

Nothing is computed anew but the scores: adapters, matches and answers are those of the run, and are refused where they
do not belong together. What the files hold is in `reference_results`.

Example:
    >>> write_reference_layout(Path("runs/demo"), Path("out"), pool=pool, targets=targets, base=base)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mta.base_model import BaseModel
from mta.errors import DataError
from mta.evaluation.reference_results import Places, aggregate, number_or_text, result_name, user_result
from mta.evaluation.reference_run import (
    FinishedRun,
    ServedUser,
    anchor_users,
    open_run,
    served_users,
)
from mta.files import safe_name, storage_errors, write_json, write_jsonl
from mta.lora.peft_format import CONFIG, WEIGHTS, write_peft
from mta.merging import Match
from mta.prompting import render
from mta.records import HistoryItem, User
from mta.tasks.examples import query_examples
from mta.tasks.task import EMBED_WORDS, Task


@dataclass(frozen=True, slots=True)
class _Tree:
    """Where everything of one task goes."""

    out: Path
    task: Task

    @property
    def strategy(self) -> str:
        return f"hybrid_{self.task.slug}"

    @property
    def anchors(self) -> Path:
        return self.out / "data" / self.task.slug / "anchor_user_data.jsonl"

    @property
    def matches(self) -> Path:
        return self.out / "dense_retrieval_results" / self.task.slug / "matches_results.json"

    @property
    def results(self) -> Path:
        return self.out / "final_eval_results" / self.strategy

    @property
    def aggregated(self) -> Path:
        return self.results / f"final_aggregated_results_{self.task.slug}.json"

    @property
    def merged_folder(self) -> Path:
        return self.out / "merge_lora" / self.strategy

    @property
    def adapted_folder(self) -> Path:
        return self.out / "adapt_lora" / self.strategy

    def merged(self, user_id: str) -> Path:
        return self.merged_folder / f"merge_lora_{safe_name(user_id)}"

    def adapted(self, user_id: str) -> Path:
        return self.adapted_folder / f"adapt_lora_{safe_name(user_id)}"

    def result(self, match: Match) -> Path:
        return self.results / result_name(self.task, safe_name(match.user_id), match)

    def inside(self, path: Path) -> str:
        """Return a path as the files name it: relative to the tree, with "/"."""
        return path.relative_to(self.out).as_posix()


def write_reference_layout(
    run_folder: Path, out: Path, *, pool: Sequence[User], targets: Sequence[User], base: BaseModel, method: str = "mta"
) -> list[Path]:
    """Write a finished run as the folder tree and files of the authors' scripts.

    Files of the same name are replaced, nothing is deleted. User ids go into names through `files.safe_name`; ids that
    are whole numbers stay as they are. Everything is checked before the first file is written.

    Args:
        run_folder: folder of a finished `run`.
        out: root of the tree; created if missing.
        pool: the pool users of the run, for the anchors' records.
        targets: the target users of the run.
        base: the base model of the run, in the run's dtype.
        method: which method's adapters and answers, one of `reference_run.WRITABLE`.

    Returns:
        Every file written.

    Raises:
        ConfigError: the method merges no anchors.
        DataError: the run is not finished or not of these users, parts of it do not belong together, or `out` holds
            adapters or results of other users or weights, which the original aggregation would mix in.
        BankError: the base model is not the run's.
        StorageError: a file cannot be read or written.
    """
    run = open_run(run_folder, base, method)
    served = served_users(run, targets)
    anchors = anchor_users(run.bank, pool, {name for one in served for name in one.match.anchor_ids})
    tree = _Tree(out, run.task)
    _refuse_leftovers(tree, served)
    written = [_write_anchors(tree, anchors), _write_matches(tree, served)]
    for one in served:
        written += _write_adapters(tree, one, base)
    return written + _write_results(tree, run, served)


def _refuse_leftovers(tree: _Tree, served: Sequence[ServedUser]) -> None:
    """Refuse a tree with results or adapters that would stay beside the new ones: an aggregate would mix them in."""
    planned = {tree.aggregated, *(tree.result(one.match) for one in served if one.rows)}
    planned |= {tree.merged(one.user.user_id) for one in served}
    planned |= {tree.adapted(one.user.user_id) for one in served if one.own}
    found = [*_listed(tree.results, "*.json")]
    found += [*_listed(tree.merged_folder, "merge_lora_*"), *_listed(tree.adapted_folder, "adapt_lora_*")]
    left = sorted(set(found) - planned)
    if left:
        raise DataError(
            f"{tree.out} already holds {len(left)} adapters or results that would stay beside this run's own (first: "
            f"{tree.inside(left[0])}); they belong to other users, weights or settings and would be mixed into "
            "aggregates - choose an empty folder, or move them away"
        )


def _listed(folder: Path, pattern: str) -> list[Path]:
    with storage_errors(folder, "list"):
        return sorted(folder.glob(pattern)) if folder.is_dir() else []


def _write_anchors(tree: _Tree, anchors: Sequence[User]) -> Path:
    write_jsonl(tree.anchors, [_anchor_row(user) for user in anchors])
    return tree.anchors


def _anchor_row(user: User) -> dict[str, Any]:
    return {
        "user_id": number_or_text(user.user_id),
        "profile": [_anchor_item(item) for item in user.history],
        "query": [{"id": query.query_id, "input": query.text, "gold": query.gold} for query in user.queries],
    }


def _anchor_item(item: HistoryItem) -> dict[str, str]:
    """An item with every field cut to its first words, which the original joins by single spaces."""
    cut = {name: " ".join(text.split()[:EMBED_WORDS]) for name, text in item.fields.items()}
    return {"id": item.item_id, **cut} | ({} if item.time is None else {"date": item.time})


def _write_matches(tree: _Tree, served: Sequence[ServedUser]) -> Path:
    write_json(tree.matches, [_match_row(one.match) for one in served])
    return tree.matches


def _match_row(match: Match) -> dict[str, Any]:
    return {
        "few_shot_user_id": number_or_text(match.user_id),
        "matches": [
            {"rank": rank, "anchor_user_id": number_or_text(name), "similarity_score": similarity}
            for rank, (name, similarity) in enumerate(zip(match.anchor_ids, match.similarities, strict=True), start=1)
        ],
    }


def _write_adapters(tree: _Tree, one: ServedUser, base: BaseModel) -> list[Path]:
    folders = [(tree.merged(one.user.user_id), one.merged)]
    folders += [(tree.adapted(one.user.user_id), one.own)] if one.own else []
    for folder, recipe in folders:
        write_peft(recipe.make(), folder, base_model=base.name)
    return [folder / name for folder, _ in folders for name in (WEIGHTS, CONFIG)]


def _write_results(tree: _Tree, run: FinishedRun, served: Sequence[ServedUser]) -> list[Path]:
    """Write one file a user and the aggregate; a user without queries has adapters and no results."""
    answered_at = datetime.fromtimestamp(run.predictions.stat().st_mtime, tz=UTC).isoformat()
    results = {
        tree.result(one.match): user_result(
            run.task,
            one.rows,
            match=one.match,
            shown=_shown(run, one.user),
            places=_places(tree, run, one, answered_at),
        )
        for one in served
        if one.rows
    }
    for path, result in results.items():
        write_json(path, result)
    rows = [row for one in served for row in one.rows]
    folder = tree.inside(tree.results)
    write_json(
        tree.aggregated,
        aggregate(run.task, rows, list(results.values()), results_folder=folder, answered_at=answered_at),
    )
    return [*results, tree.aggregated]


def _shown(run: FinishedRun, user: User) -> dict[str, str]:
    """Return each query's prompt, before a chat frame and before it is cut to the model's context."""
    examples = query_examples(run.task, user, history_k=run.prompts.history_k)
    return {example.example_id: render(run.task, example, run.prompts).text for example in examples}


def _places(tree: _Tree, run: FinishedRun, one: ServedUser, answered_at: str) -> Places:
    return Places(
        base_model=run.base.name,
        merged=tree.inside(tree.merged(one.user.user_id)),
        adapted=tree.inside(tree.adapted(one.user.user_id)) if one.own else None,
        strategy=tree.strategy,
        merge=run.merge,
        method=run.method,
        answered_at=answered_at,
    )
