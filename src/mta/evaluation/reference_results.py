"""The authors' result files: what one user's file and the aggregate over users hold, with the official metrics inside.

The keys are those of the original evaluation and aggregation scripts, which differ from task to task. Values only:
where files go is `reference_layout`'s business.

Example:
    >>> user_result(task, rows, match=match, shown={}, places=places)["metrics"]
    {'accuracy': 0.5, 'macro_f1': 0.0666...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mta.config import MergeConfig
from mta.merging import Match
from mta.metrics import parse_rating, rouge_scorer, score
from mta.records import Prediction
from mta.tasks.task import Task

ALPHA_DECIMALS = 6
ROUGE_PARTS = ("precision", "recall", "fmeasure")
F1_KEYS = {"lamp-1": "f1"}
"""Tasks whose user files call macro-F1 something else than `macro_f1`."""
HEADLINES = "lamp-4"
"""The task whose files are named and keyed unlike all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What a user's result file says about where its parts are; paths are relative to the tree."""

    base_model: str
    merged: str
    """Folder of the merged adapter."""
    adapted: str | None
    """Folder of the user's own adapter, or None where the user was not adapted."""
    strategy: str
    """Name of the folder the adapters are in, for example "hybrid_citation"."""
    merge: MergeConfig
    method: str
    answered_at: str
    """When the answers were given, ISO 8601."""


def number_or_text(user_id: str) -> int | str:
    """Return an id as the number it spells, where writing that number gives the same text again, else as it is."""
    digits = user_id.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 15):
        return user_id
    return int(user_id) if str(int(user_id)) == user_id else user_id


def file_alpha(match: Match) -> str:
    """Return the weight of the nearest anchor as result files carry it in their names."""
    return f"{match.weights[0]:.{ALPHA_DECIMALS}f}"


def result_name(task: Task, safe_user_id: str, match: Match) -> str:
    """Return the name of one user's result file; headline files have no weight in theirs."""
    if task.task_id == HEADLINES:
        return f"result_user_{safe_user_id}.json"
    return f"results_{safe_user_id}_alpha_{file_alpha(match)}.json"


def user_result(
    task: Task, rows: Sequence[Prediction], *, match: Match, shown: Mapping[str, str], places: Places
) -> dict[str, Any]:
    """Build the content of one user's result file.

    Args:
        task: what was asked.
        rows: the user's predictions, at least one.
        match: the user's anchors, similarities and weights.
        shown: query id -> the prompt as rendered, before a chat frame and before cutting to the model's context.
        places: where the adapters are.
    """
    details = _details(task, rows, shown)
    head = {
        "user_id": match.user_id,
        "alpha" if task.task_id == HEADLINES else "alpha_value": round(match.weights[0], ALPHA_DECIMALS),
        "metrics": user_metrics(task, rows),
        "total_samples": len(rows),
        "predictions": details if task.task_id == HEADLINES else [_pair(row) for row in rows],
    }
    return {**head, **_task_keys(task, rows, details, places, match), **_place_keys(match, places)}


def _pair(row: Prediction) -> dict[str, str]:
    return {"prediction": row.text, "ground_truth": row.gold}


def _details(task: Task, rows: Sequence[Prediction], shown: Mapping[str, str]) -> list[dict[str, str | None]]:
    """One entry a query; the completion before clean-up is null, since a run does not keep it."""
    raw = "raw_output" if task.task_id == HEADLINES else "raw_prediction"
    return [{"instruction": shown.get(row.query_id), raw: None, **_pair(row)} for row in rows]


def _task_keys(
    task: Task, rows: Sequence[Prediction], details: list[dict[str, str | None]], places: Places, match: Match
) -> dict[str, Any]:
    """Keys that only some tasks' files have."""
    if task.kind == "rating":
        penalized = _penalized(rows)
        counts = {"valid_prediction_samples": len(rows) - penalized, "penalized_samples": penalized}
        return {"description": _description(places, match), **user_metrics(task, rows), **counts}
    if task.kind == "label":
        return {"detailed_predictions_original": details}
    rouge = {"rouge_metrics": user_metrics(task, rows)}
    if task.task_id == HEADLINES:
        return rouge
    return {"description": _description(places, match), **rouge, "detailed_results": details}


def _description(places: Places, match: Match) -> str:
    return f"{places.method}, user {match.user_id}"


def _place_keys(match: Match, places: Places) -> dict[str, Any]:
    return {
        "stacked_lora_id": places.strategy,
        "stacked_lora_path": places.adapted,
        "fused_lora_path": places.merged,
        "base_model_path": places.base_model,
        "merged_base_model_path": None,  # the base model is never rewritten
        "eval_data_file": None,
        "evaluation_timestamp": places.answered_at,
        "method": places.method,
        "fusion": {
            "mode": places.merge.mode,
            "scale": places.merge.scale,
            "anchor_user_ids": [number_or_text(name) for name in match.anchor_ids],
            "similarity_scores": list(match.similarities),
            "weights": list(match.weights),
        },
    }


def user_metrics(task: Task, rows: Sequence[Prediction]) -> dict[str, Any]:
    """Score one user's predictions under the original keys of the task."""
    golds, texts = [row.gold for row in rows], [row.text for row in rows]
    if task.kind == "label":
        found = score(["accuracy", "macro_f1"], texts, golds, labels=task.labels)
        return {"accuracy": found["accuracy"], F1_KEYS.get(task.task_id, "macro_f1"): found["macro_f1"]}
    if task.kind == "rating":
        found = score(["mae", "rmse"], texts, golds, labels=task.labels)
        return {
            "accuracy_percent": 100 * _share_exact(rows),
            "mae_on_all_samples": found["mae"],
            "rmse_on_all_samples": found["rmse"],
        }
    return _rouge(texts, golds)


def aggregated_metrics(task: Task, rows: Sequence[Prediction]) -> dict[str, float]:
    """Score all users' predictions, pooled over queries, under the keys of the original aggregate."""
    found = user_metrics(task, rows)
    if task.kind == "label":
        return {"accuracy": found["accuracy"], "macro_f1": found[F1_KEYS.get(task.task_id, "macro_f1")]}
    if task.kind == "rating":
        return {
            "mean_mae": found["mae_on_all_samples"],
            "mean_accuracy_percent": found["accuracy_percent"],
            "mean_rmse": found["rmse_on_all_samples"],
        }
    return {f"{kind}_{part}": value for kind, parts in found.items() for part, value in parts.items()}


def aggregate(
    task: Task,
    rows: Sequence[Prediction],
    results: Sequence[Mapping[str, Any]],
    *,
    results_folder: str,
    answered_at: str,
) -> dict[str, Any]:
    """Build the content of the aggregated file from all predictions and all users' result files."""
    return {
        "metadata": {
            "aggregation_timestamp": answered_at,
            "source_directory": results_folder,
            "total_users_processed": len(results),
        },
        "aggregated_metrics": aggregated_metrics(task, rows),
        "individual_results": list(results),
    }


def _penalized(rows: Sequence[Prediction]) -> int:
    """Answers that are no number; they count as the extreme farther from gold."""
    return sum(parse_rating(row.text) is None for row in rows)


def _share_exact(rows: Sequence[Prediction]) -> float:
    """Share of ratings that are exactly right; an answer that is no number is wrong even where its penalty is 0."""
    right = [(answer := parse_rating(row.text)) is not None and answer == parse_rating(row.gold) for row in rows]
    return sum(right) / len(rows)


def _rouge(texts: Sequence[str], golds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean precision, recall and F of each kind, without a stemmer, as the official metrics."""
    scorer = rouge_scorer()
    scores = [scorer.score(gold.strip(), text.strip()) for text, gold in zip(texts, golds, strict=True)]
    return {
        kind: {part: sum(getattr(found[kind], part) for found in scores) / len(scores) for part in ROUGE_PARTS}
        for kind in ("rouge1", "rougeL")
    }
