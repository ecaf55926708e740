"""Attention of rows in one sequence, laid out as a padded batch of rows: few launches, however many rows there are.

On a GPU a launch for each row of each layer would take longer than the work. The rows' tokens are copied to a grid,
one row to a line, filled up on the right; causal attention never looks to the right, so the filling needs no mask, and
what comes out on it is dropped. Rows of similar length share a grid, so that no more than half of one is filling. A
beginning that several rows share stands in each of their lines: what it makes of itself is computed again, its keys and
values are not.

Rows that are told apart by a loop (`row_attention`) give the same; on a CPU, where a launch costs nothing, that is
faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mta.transfer import send_integers


@dataclass(frozen=True, slots=True)
class RowGrids:
    """Where the N tokens of a sequence stand in its grids, whose cells are counted through from the first grid on."""

    shapes: tuple[tuple[int, int], ...]
    """Rows and length of each grid."""
    take: Tensor
    """(cells,) int64: the token in each cell; in the filling any token."""
    put: Tensor
    """(N,) int64: a cell of each token, the first of those that it stands in."""
    again_cells: Tensor
    """(E,) int64: the further cells of tokens that stand in several."""
    again_tokens: Tensor
    """(E,) int64: the tokens in them."""


def row_grids(lengths: Sequence[int], before: Sequence[int | None], *, device: torch.device | str) -> RowGrids:
    """Lay out a sequence of segments.

    Args:
        lengths: tokens of each segment.
        before: for each segment the one that its row begins with; None where it begins itself.
        device: where the tensors go.
    """
    ends = list(accumulate(lengths))
    tokens = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    shared = {first for first in before if first is not None}
    rows = [
        [*(tokens[first] if first is not None else ()), *tokens[index]]
        for index, first in enumerate(before)
        if index not in shared
    ]
    rows.sort(key=len, reverse=True)
    take: list[int] = []
    first_cells: dict[int, int] = {}
    again: list[tuple[int, int]] = []
    grids = _by_length(rows)
    for grid in grids:
        width = len(grid[0])
        for row in grid:
            for cell, token in enumerate(row, start=len(take)):
                if first_cells.setdefault(token, cell) != cell:
                    again.append((cell, token))
            take += [*row, *([row[-1]] * (width - len(row)))]

    return RowGrids(
        shapes=tuple((len(grid), len(grid[0])) for grid in grids),
        take=send_integers(take, device),
        put=send_integers([first_cells[token] for token in range(ends[-1])], device),
        again_cells=send_integers([cell for cell, _ in again], device),
        again_tokens=send_integers([token for _, token in again], device),
    )


def _by_length(rows: Sequence[list[int]]) -> list[list[list[int]]]:
    """Group rows, longest first, so that none is shorter than half the longest of its group."""
    groups: list[list[list[int]]] = []
    for row in rows:
        if not groups or 2 * len(row) < len(groups[-1][0]):
            groups.append([])
        groups[-1].append(row)
    return groups


def attend_in_grids(
    query: Tensor, key: Tensor, value: Tensor, grids: RowGrids, *, scaling: float | None, window: int | None
) -> Tensor:
    """Attend causally within each row.

    Args:
        query: (1, heads, N, d)
        key: (1, key heads, N, d); key heads divide heads.
        value: (1, key heads, N, d)
        grids: where the N tokens stand.
        scaling: factor on the scores; None is 1 / sqrt(d).
        window: a token sees this many of its row's last tokens, itself included; None is all of them.

    Returns:
        (1, N, heads, d)
    """
    cells = [_Spread.apply(each[0].transpose(0, 1), grids) for each in (query, key, value)]  # type: ignore[no-untyped-call]
    sizes = [rows * length for rows, length in grids.shapes]
    split = zip(grids.shapes, *(torch.split(each, sizes) for each in cells), strict=True)
    attended = [_attend(shape, *parts, scaling=scaling, window=window) for shape, *parts in split]
    return torch.cat(attended).index_select(0, grids.put)[None]


def _attend(
    shape: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, *, scaling: float | None, window: int | None
) -> Tensor:
    """Attend causally within each line of one grid; q, k, v (cells, heads, d); returns (cells, heads, d)."""
    q, k, v = (each.view(*shape, *each.shape[1:]).transpose(1, 2) for each in (q, k, v))  # (rows, heads, length, d)
    grouped, length = q.shape[1] != k.shape[1], shape[1]
    seen = None
    if window is not None and length > window:
        seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril().triu(1 - window)
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=seen is None, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).flatten(0, 1)


class _Spread(torch.autograd.Function):
    """Copy tokens (N, heads, d) to their cells (cells, heads, d); the gradients of a token's cells are added up.

    Nothing is looked for in the filling, whose gradients are zero. Sums are made in the same order every time.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, grids: RowGrids) -> Tensor:
        ctx.grids = grids
        return tokens.index_select(0, grids.take)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        grids = ctx.grids
        found = gradients[0].index_select(0, grids.put)
        if len(grids.again_tokens):
            found.index_put_((grids.again_tokens,), gradients[0][grids.again_cells], accumulate=True)
        return found, None
