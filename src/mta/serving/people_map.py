"""A map of people and anchors: their matching vectors on a plane, so that neighbours can be seen.

Example:
    >>> places = on_a_plane(torch.cat([anchor_vectors, people_vectors]))
    >>> draw_map(places[:3], places[3:], chosen=0, nearest=(1, 2))
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANCHOR, PERSON, CHOSEN = "#4c72b0", "#9a9a9a", "#c44e52"
SIZE_IN = (6.0, 4.2)


def on_a_plane(vectors: Tensor) -> Tensor:
    """Return the two directions in which vectors differ most.

    Args:
        vectors: (N, D), of any length; only their directions count, as in matching.

    Returns:
        (N, 2) places, (0, 0) in the middle; each axis points so that its largest value is positive.
    """
    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    centred = units - units.mean(0, keepdim=True)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    places = torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
    largest = places.gather(0, places.abs().argmax(0, keepdim=True))
    return places * torch.where(largest < 0, -1.0, 1.0)


def draw_map(anchors: Tensor, people: Tensor, *, chosen: int | None, nearest: Collection[int]) -> Figure:
    """Draw anchors, people, and lines from the chosen one to her anchors.

    Args:
        anchors: (M, 2) places.
        people: (N, 2) places.
        chosen: row of `people` to point out.
        nearest: rows of `anchors` that the chosen person's adapter is merged from.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and few servers draw
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_IN, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(people[:, 0], people[:, 1], s=14, color=PERSON, label="people")
    axes.scatter(anchors[:, 0], anchors[:, 1], s=42, marker="^", color=ANCHOR, label="anchors")
    if chosen is not None:
        here = people[chosen].tolist()
        for index in nearest:
            axes.plot(*zip(here, anchors[index].tolist(), strict=True), color=CHOSEN, linewidth=1)
        axes.scatter(here[0], here[1], s=60, color=CHOSEN, label="this person", zorder=3)
    axes.set(xticks=[], yticks=[], title="People and anchors")
    axes.legend(loc="best", frameon=False)
    return figure
