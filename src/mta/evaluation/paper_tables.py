"""The paper's own numbers, as data: tables 1 to 4 of arXiv 2511.20072, to stand beside a run's.

They were made with Llama-3-8B-Instruct on other users than any here; nothing is computed with them.

Example:
    >>> TABLE_1["lamp-2"]["accuracy"]["mta"]
    0.4444
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

RIVALS = ("rag-1", "rag-3", "rag-5", "oppu", "per-pcs", "proper", "mta")
"""Columns of table 1, by our names; the paper's "RAG k = 1, 3, 5", OPPU, PER-PCS, PROPER, MTA."""
ABLATIONS = ("adapt-only", "merged-only", "mta")
"""Columns of table 2: Adapt-Only LoRA, Merged-Only LoRA, MTA."""

Numbers = Mapping[str, Mapping[str, Mapping[str, float]]]
"""task id -> metric -> method -> score."""


def _numbers(columns: tuple[str, ...], rows: Mapping[str, Mapping[str, tuple[float, ...]]]) -> Numbers:
    return MappingProxyType(
        {
            task: {metric: dict(zip(columns, values, strict=True)) for metric, values in metrics.items()}
            for task, metrics in rows.items()
        }
    )


TABLE_1: Numbers = _numbers(
    RIVALS,
    {
        "lamp-1": {
            "accuracy": (0.4915, 0.5085, 0.4407, 0.5085, 0.5339, 0.5169, 0.5424),
            "macro_f1": (0.4821, 0.4962, 0.4087, 0.5037, 0.5289, 0.5110, 0.5412),
        },
        "lamp-2": {
            "accuracy": (0.2917, 0.3472, 0.4028, 0.4167, 0.3611, 0.4306, 0.4444),
            "macro_f1": (0.2054, 0.2510, 0.3131, 0.2368, 0.1911, 0.3161, 0.2592),
        },
        "lamp-3": {
            "mae": (0.3964, 0.4144, 0.4144, 0.2432, 0.2162, 0.2072, 0.1982),
            "rmse": (0.7229, 0.8383, 0.8490, 0.5452, 0.5199, 0.4746, 0.4350),
        },
        "lamp-4": {
            "rouge_1": (0.1664, 0.1928, 0.1890, 0.2144, 0.1891, 0.2152, 0.2399),
            "rouge_l": (0.1332, 0.1611, 0.1621, 0.1885, 0.1821, 0.1849, 0.2134),
        },
        "lamp-5": {
            "rouge_1": (0.4663, 0.4926, 0.4887, 0.4836, 0.4958, 0.5122, 0.5291),
            "rouge_l": (0.3839, 0.4184, 0.4141, 0.4254, 0.4370, 0.4487, 0.4659),
        },
    },
)
"""Overall performance."""

TABLE_2: Numbers = _numbers(
    ABLATIONS,
    {
        "lamp-1": {"accuracy": (0.5254, 0.5339, 0.5424), "macro_f1": (0.5182, 0.5323, 0.5412)},
        "lamp-2": {"accuracy": (0.2917, 0.3611, 0.4444), "macro_f1": (0.2054, 0.2031, 0.2592)},
        "lamp-3": {"mae": (0.3514, 0.2342, 0.1982), "rmse": (0.8329, 0.4840, 0.4350)},
        "lamp-4": {"rouge_1": (0.1757, 0.2374, 0.2399), "rouge_l": (0.1467, 0.2127, 0.2134)},
        "lamp-5": {"rouge_1": (0.4885, 0.5043, 0.5291), "rouge_l": (0.4058, 0.4525, 0.4659)},
    },
)
"""Without the merge, and without the adaptation."""

TABLE_3: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "lamp-1": {"most": 607, "fewest": 40, "mean": 88.4},
        "lamp-2": {"most": 1289, "fewest": 4, "mean": 204.46},
        "lamp-3": {"most": 1021, "fewest": 97, "mean": 202.52},
        "lamp-4": {"most": 945, "fewest": 7, "mean": 31.2},
        "lamp-5": {"most": 911, "fewest": 47, "mean": 94.34},
    }
)
"""History items per user."""

TABLE_4: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        task: {"rank": 4, "epochs": epochs, "lr": lr, "batch": 2 * 4}
        for task, epochs, lr in (
            ("lamp-1", 2, 5e-5),
            ("lamp-2", 3, 1e-4),
            ("lamp-3", 1, 5e-5),
            ("lamp-4", 3, 1e-4),
            ("lamp-5", 2, 5e-5),
        )
    }
)
"""Settings of the adaptation; the batch is 2 examples times 4 accumulation steps."""
