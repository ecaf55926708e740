"""A finished adapter is a value, and adapters add.

An `Adapter` maps module names to factors `A (r, d_in)` and `B (d_out, r)`; its delta on a module is `B @ A`.
The training scale `alpha / r` is folded into `B` when an adapter is finished, so a finished adapter needs no
scaling. Everything here is a pure function of tensors: no model, no file.

Example:
    >>> both = cat([scale(a, 0.6), scale(b, 0.4)])     # the exact weighted sum of two deltas
    >>> torch.allclose(both.delta("q"), 0.6 * a.delta("q") + 0.4 * b.delta("q"))
    True
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta.errors import AdapterError


@dataclass(frozen=True, slots=True)
class Factors:
    """The two factors of one module's delta."""

    A: Tensor
    """(r, d_in)"""
    B: Tensor
    """(d_out, r)"""

    @property
    def rank(self) -> int:
        """Inner dimension r."""
        return self.A.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One set of LoRA factors for all target modules; its delta on a module is `B @ A`, scaling 1."""

    modules: Mapping[str, Factors]

    def __post_init__(self) -> None:
        for name, factors in self.modules.items():
            if factors.A.dim() != 2 or factors.B.dim() != 2 or factors.A.shape[0] != factors.B.shape[1]:
                raise AdapterError(
                    f"module {name}: A is {tuple(factors.A.shape)} and B is {tuple(factors.B.shape)}; "
                    "wanted A (r, d_in) and B (d_out, r) with one r"
                )

    @property
    def rank(self) -> int:
        """Largest rank over the modules."""
        return max((factors.rank for factors in self.modules.values()), default=0)

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        return sum(f.A.numel() + f.B.numel() for f in self.modules.values())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name, `<module>.A` and `<module>.B`, in module order."""
        for name, factors in self.modules.items():
            yield f"{name}.A", factors.A
            yield f"{name}.B", factors.B

    def delta(self, module: str) -> Tensor:
        """Return the dense delta of one module, (d_out, d_in)."""
        factors = self.modules[module]
        return factors.B @ factors.A

    def norm(self) -> float:
        """Return the Frobenius norm of all deltas together, computed in rank space."""
        squares = [_inner(f, f) for f in self.modules.values()]
        return float(torch.stack(squares).sum().clamp_min(0).sqrt()) if squares else 0.0

    def fingerprint(self) -> str:
        """Return a SHA-256 over names, shapes and exact values, independent of the order of modules."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors(), key=lambda pair: pair[0]):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class AdapterSum:
    """Weighted adapters whose deltas add up, kept apart: one that many sums share is held in memory once.

    Who serves many users from one bank finds what they share by the identity of the adapters.
    """

    terms: tuple[tuple[float, Adapter], ...]
    """(weight, adapter)"""

    @property
    def modules(self) -> Mapping[str, tuple[tuple[float, Factors], ...]]:
        """What there is on each module, by its name."""
        names = dict.fromkeys(name for _, adapter in self.terms for name in adapter.modules)
        return {
            name: tuple((w, adapter.modules[name]) for w, adapter in self.terms if name in adapter.modules)
            for name in names
        }

    @property
    def rank(self) -> int:
        """Largest rank of the sum over the modules."""
        return max((sum(factors.rank for _, factors in parts) for parts in self.modules.values()), default=0)

    def whole(self) -> Adapter:
        """Return the sum as one adapter, with the weights in its B.

        Raises:
            AdapterError: there are no terms, or they belong to different base models.
        """
        return cat([adapter if weight == 1 else scale(adapter, weight) for weight, adapter in self.terms])


def as_sum(adapter: Adapter) -> AdapterSum:
    """Return an adapter as a sum of one term."""
    return AdapterSum(((1.0, adapter),))


@dataclass(frozen=True, slots=True)
class Recipe:
    """An adapter as the way to get it, so that thousands can wait in a queue without their tensors."""

    fingerprint: str
    """Identifies the result."""
    rank: int
    """Largest rank of the result."""
    parts: Callable[[], AdapterSum]
    """Gets it as a sum in which what others share is not copied."""

    def make(self) -> Adapter:
        """Return it as one adapter."""
        return self.parts().whole()


def recipe(adapter: Adapter) -> Recipe:
    """Return the recipe of an adapter that is already there."""
    return Recipe(adapter.fingerprint(), adapter.rank, lambda: as_sum(adapter))


def adapter_from_tensors(tensors: Mapping[str, Tensor], *, where: str) -> Adapter:
    """Pair up tensors named `<module>.A` and `<module>.B`.

    Raises:
        AdapterError: a factor is missing or the name is unknown.
    """
    modules: dict[str, Factors] = {}
    for name in tensors:
        module, _, factor = name.rpartition(".")
        if factor not in ("A", "B") or f"{module}.A" not in tensors or f"{module}.B" not in tensors:
            raise AdapterError(f"{where}: tensor {name} has no partner; expected <module>.A and <module>.B pairs")
        modules[module] = Factors(tensors[f"{module}.A"], tensors[f"{module}.B"])
    return Adapter(modules)


def map_tensors(adapter: Adapter, change: Callable[[Tensor], Tensor]) -> Adapter:
    """Return the adapter with `change` applied to every tensor, for example to move or cast it."""
    return Adapter({name: Factors(change(f.A), change(f.B)) for name, f in adapter.modules.items()})


def scale(adapter: Adapter, weight: float) -> Adapter:
    """Return the adapter whose delta is `weight` times this one's (the factor goes into B)."""
    return Adapter({name: Factors(f.A, f.B * weight) for name, f in adapter.modules.items()})


def cat(adapters: Sequence[Adapter]) -> Adapter:
    """Return the adapter whose delta is the exact sum of the deltas; ranks add up.

    Args:
        adapters: any number of adapters; a module missing in one contributes nothing there. Ranks may differ.

    Raises:
        AdapterError: none given, or a module has different shapes in two of them.
    """
    if not adapters:
        raise AdapterError("cannot concatenate zero adapters; give at least one")
    names = dict.fromkeys(name for adapter in adapters for name in adapter.modules)
    return Adapter({name: _cat_module(name, adapters) for name in names})


def _cat_module(name: str, adapters: Sequence[Adapter]) -> Factors:
    parts = [adapter.modules[name] for adapter in adapters if name in adapter.modules]
    shapes = {(part.B.shape[0], part.A.shape[1]) for part in parts}
    if len(shapes) > 1:
        raise AdapterError(
            f"cannot concatenate: module {name} is {' and '.join(map(str, sorted(shapes)))} (d_out, d_in) in different "
            "adapters; they belong to different base models"
        )
    if len(parts) == 1:
        return parts[0]
    return Factors(torch.cat([p.A for p in parts], dim=0), torch.cat([p.B for p in parts], dim=1))


def mix_factors(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Return the adapter with A = sum w_k A_k and B = sum w_k B_k, rank unchanged.

    Its delta is NOT the weighted sum of the deltas: cross terms `w_i w_j B_i A_j` appear, and the weights are
    squared on the diagonal. Mixing with a shared A and weights that sum to 1 is exact.

    Raises:
        AdapterError: modules, shapes or ranks differ, or counts do not match.
    """
    require_same_shape(adapters)
    require_one_weight_each(adapters, weights)
    mixed = {}
    for name in adapters[0].modules:
        parts = [adapter.modules[name] for adapter in adapters]
        A = sum((w * p.A for w, p in zip(weights, parts, strict=True)), torch.zeros_like(parts[0].A))
        B = sum((w * p.B for w, p in zip(weights, parts, strict=True)), torch.zeros_like(parts[0].B))
        mixed[name] = Factors(A, B)
    return Adapter(mixed)


def require_same_shape(adapters: Sequence[Adapter]) -> None:
    """Check that adapters have the same modules with the same shapes.

    Raises:
        AdapterError: none given, or they differ; the message names the first difference.
    """
    if not adapters:
        raise AdapterError("got zero adapters; give at least one")
    first = adapters[0]
    for index, other in enumerate(adapters[1:], start=1):
        if set(other.modules) != set(first.modules):
            extra = sorted(set(other.modules) ^ set(first.modules))
            raise AdapterError(
                f"adapter {index} and adapter 0 have different modules, for example {extra[0]}; "
                "this needs equal target modules - retrain, or use cat"
            )
        for name, factors in first.modules.items():
            mine, theirs = (
                (factors.A.shape, factors.B.shape),
                (other.modules[name].A.shape, other.modules[name].B.shape),
            )
            if mine != theirs:
                raise AdapterError(
                    f"module {name}: adapter {index} has A {tuple(theirs[0])}, adapter 0 has A {tuple(mine[0])}; "
                    "mixing factors needs equal ranks - use cat, or retrain with one rank"
                )


def require_one_weight_each(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    """Check that there are as many weights as adapters.

    Raises:
        AdapterError: there are not.
    """
    if len(adapters) != len(weights):
        raise AdapterError(f"got {len(adapters)} adapters and {len(weights)} weights; give one weight per adapter")


def truncate(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """Return the closest adapter of at most `rank`, and the share of squared norm that is lost.

    Each module's delta is cut to its `rank` largest singular values (QR of both factors, then an SVD of the small
    core), which is the best approximation in Frobenius norm.

    Raises:
        AdapterError: `rank` is below 1.
    """
    if rank < 1:
        raise AdapterError(f"cannot truncate to rank {rank}; it must be 1 or more")
    kept: dict[str, Factors] = {}
    lost = total = 0.0
    for name, factors in adapter.modules.items():
        kept[name], values = _truncate_module(factors, rank)
        squares = values.double().square()
        total += float(squares.sum())
        lost += float(squares[rank:].sum())
    return Adapter(kept), lost / total if total else 0.0


def _truncate_module(factors: Factors, rank: int) -> tuple[Factors, Tensor]:
    dtype = torch.promote_types(factors.A.dtype, torch.float32)
    q_out, r_out = torch.linalg.qr(factors.B.to(dtype))  # (d_out, k), (k, r)
    q_in, r_in = torch.linalg.qr(factors.A.to(dtype).T)  # (d_in, k), (k, r)
    left, values, right = torch.linalg.svd(r_out @ r_in.T)
    root = values[:rank].sqrt()
    B = (q_out @ left[:, :rank]) * root
    A = root[:, None] * (right[:rank] @ q_in.T)
    return Factors(A.to(factors.A.dtype), B.to(factors.B.dtype)), values


def _inner(first: Factors, second: Factors) -> Tensor:
    """<B1 A1, B2 A2> = trace((B2' B1)(A1 A2')), without forming a dense delta."""
    return ((second.B.T @ first.B).T * (first.A @ second.A.T)).sum()


def distance(first: Adapter, second: Adapter) -> tuple[float, float]:
    """Compare two adapters' deltas over all modules.

    Returns:
        (relative difference |D1 - D2| / |D1|, cosine <D1, D2> / (|D1| |D2|)); both computed in rank space in fp64.
        A zero adapter gives (0, 1) against another zero adapter, else (inf, 0).
    """
    one, two = (map_tensors(adapter, lambda t: t.detach().double()) for adapter in (first, second))
    names = dict.fromkeys([*one.modules, *two.modules])
    dot = norm_one = norm_two = 0.0
    for name in names:
        a, b = one.modules.get(name), two.modules.get(name)
        dot += float(_inner(a, b)) if a and b else 0.0
        norm_one += float(_inner(a, a)) if a else 0.0
        norm_two += float(_inner(b, b)) if b else 0.0
    if norm_one <= 0 or norm_two <= 0:
        return (0.0, 1.0) if norm_one == norm_two else (float("inf"), 0.0)
    difference = max(norm_one + norm_two - 2 * dot, 0.0)
    return (difference / norm_one) ** 0.5, dot / (norm_one * norm_two) ** 0.5
