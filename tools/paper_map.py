"""Write docs/paper_map.md: where each equation of the paper is in the code.

Read from the `Source: MTA Eq. N` lines in the docstrings of `src/mta`, with `ast`, so nothing is imported. A test
compares the page with what this makes.

Example:
    $ python tools/paper_map.py
    docs/paper_map.md: 9 functions, 7 equations
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "mta"
PAGE = ROOT / "docs" / "paper_map.md"
SOURCE = re.compile(r"^Source: MTA Eq\. (\d+) +(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Equation:
    """One numbered formula of the paper."""

    number: int
    section: str
    what: str
    functions: int = 1
    """How many functions of the package implement it."""


EQUATIONS = (
    Equation(1, "2 Preliminaries", "a user's model: base, merged anchors and own adapter added up"),
    Equation(2, "3.2 Meta-LoRA Bank Construction", "a user's vector: the mean of the item vectors"),
    Equation(3, "3.2 Meta-LoRA Bank Construction", "the anchor of a cluster: its most active user"),
    Equation(4, "3.3 Adaptive LoRA Merging", "how similar a user is to an anchor"),
    Equation(5, "3.3 Adaptive LoRA Merging", "the merged adapter; exactly, and factor by factor", functions=2),
    Equation(6, "3.3 Adaptive LoRA Merging", "the weights of the anchors"),
    Equation(7, "3.4 LoRA Stacking", "the forward pass over frozen parts, and the training of the rest", functions=2),
)


@dataclass(frozen=True, slots=True)
class Place:
    """One function that says it implements an equation."""

    equation: int
    formula: str
    function: str
    """Dotted name without the package, for example "merging.merge_cat"."""
    path: str
    """Relative to the project's folder."""
    line: int


def find_places(package: Path = PACKAGE) -> list[Place]:
    """Find every function of a package whose docstring names an equation, in order of equation, then file."""
    places = [place for path in sorted(package.rglob("*.py")) for place in _places_in(path, package)]
    return sorted(places, key=lambda place: (place.equation, place.path, place.line))


def _places_in(path: Path, package: Path) -> Iterator[Place]:
    module = ".".join(path.relative_to(package).with_suffix("").parts)
    shown = path.relative_to(package.parents[1]).as_posix()
    for name, node in _functions(ast.parse(path.read_text(encoding="utf-8")), module):
        for found in SOURCE.finditer(ast.get_docstring(node) or ""):
            yield Place(int(found[1]), found[2].strip(), name, shown, node.lineno)


def _functions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield f"{prefix}.{child.name}", child
            yield from _functions(child, f"{prefix}.{child.name}")


def find_faults(places: Iterable[Place]) -> list[str]:
    """List equations that nothing implements, that too many functions claim, or that the paper does not have."""
    known = {equation.number: equation for equation in EQUATIONS}
    claimed: dict[int, list[str]] = {number: [] for number in known}
    for place in places:
        claimed.setdefault(place.equation, []).append(place.function)
    faults = []
    for number, functions in sorted(claimed.items()):
        wanted = known[number].functions if number in known else 0
        if len(functions) != wanted:
            names = ", ".join(functions) or "nobody"
            faults.append(f"Eq. {number} should be implemented by {wanted} functions, it is claimed by {names}")
    return faults


def render_page(places: Iterable[Place]) -> str:
    """Write the page."""
    known = {equation.number: equation for equation in EQUATIONS}
    rows = [_row(known[place.equation], place) for place in places]
    return "\n".join(
        [
            "# From the paper to the code",
            "",
            "Every numbered equation of the paper, the function that implements it, and the formula as its docstring "
            "states it.",
            "Made by `make docs` from the `Source:` lines of the docstrings; do not edit.",
            "",
            "| Eq. | section | what | function | where | formula |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _row(equation: Equation, place: Place) -> str:
    where = f"[{place.path}:{place.line}](../{place.path}#L{place.line})"
    formula = place.formula.replace("|", "\\|")
    return f"| {equation.number} | {equation.section} | {equation.what} | `{place.function}` | {where} | `{formula}` |"


def main() -> None:
    """Write the page, or say what is wrong with the docstrings."""
    places = find_places()
    if faults := find_faults(places):
        raise SystemExit("\n".join(faults))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render_page(places), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(places)} functions, {len(EQUATIONS)} equations")


if __name__ == "__main__":
    main()
