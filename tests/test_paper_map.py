"""The page that leads from the paper to the code is whole and fresh, and what makes it notices what is wrong."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_map", ROOT / "tools" / "paper_map.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_map"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


paper_map = tool()


def test_the_page_is_fresh() -> None:
    page = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
    assert page == paper_map.render_page(paper_map.find_places()), "stale: run `make docs`"


def test_every_equation_is_implemented_as_often_as_the_table_allows() -> None:
    assert [equation.number for equation in paper_map.EQUATIONS] == [1, 2, 3, 4, 5, 6, 7]
    assert paper_map.find_faults(paper_map.find_places()) == []
    claims: dict[int, set[str]] = {}
    for place in paper_map.find_places():
        claims.setdefault(place.equation, set()).add(place.function.split(".")[-1])
    assert claims[4] == {"cosine_similarity"}
    assert claims[5] == {"merge_cat", "merge_linear"}
    assert claims[6] == {"similarity_weights"}
    assert "adapt_users" in claims[7]


def test_no_source_line_escapes_the_map() -> None:
    """A line written otherwise ("eq. 5", two numbers) would be missing without a word."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "mta").rglob("*.py")]
    lines = [line for text in texts for line in re.findall(r"Source:.*(?:MTA|[Ee]q).*", text)]
    assert len(lines) == len(paper_map.find_places())


def test_every_place_is_where_the_page_says() -> None:
    for place in paper_map.find_places():
        line = (ROOT / place.path).read_text(encoding="utf-8").splitlines()[place.line - 1]
        assert re.match(rf"\s*def {place.function.split('.')[-1]}\(", line)


# the tool itself --------------------------------------------------------------------------------------------------

MADE_UP = '''
def outer():
    """Do it.

    Source: MTA Eq. 5   a = |b|
    Source: MTA Eq. 6   c = d
    """
    def inner():
        """Source: Somebody, algorithm 2"""


class Thing:
    def method(self):
        """Do more.

        Source: MTA Eq. 12   e = f
        """
'''


def test_lines_are_read_from_docstrings_of_functions_and_methods(tmp_path: Path) -> None:
    package = tmp_path / "src" / "made"
    (package / "deep").mkdir(parents=True)
    (package / "deep" / "up.py").write_text(MADE_UP)
    (package / "no.py").write_text('TEXT = "Source: MTA Eq. 1   x"\n# Source: MTA Eq. 2   y\n')
    places = paper_map.find_places(package)
    assert [(p.equation, p.function, p.formula, p.path, p.line) for p in places] == [
        (5, "deep.up.outer", "a = |b|", "src/made/deep/up.py", 2),
        (6, "deep.up.outer", "c = d", "src/made/deep/up.py", 2),
        (12, "deep.up.Thing.method", "e = f", "src/made/deep/up.py", 13),
    ]
    assert "| `a = \\|b\\|` |" in paper_map.render_page(places[:1])


@pytest.mark.parametrize("number", range(1, 8))
def test_a_missing_a_doubled_and_an_unknown_equation_are_named(number: int) -> None:
    places = paper_map.find_places()
    without = [place for place in places if place.equation != number]
    assert [fault for fault in paper_map.find_faults(without) if f"Eq. {number} " in fault and "nobody" in fault]
    again = replace(next(place for place in places if place.equation == number), function="copy.of_it")
    (fault,) = paper_map.find_faults([*places, again])
    assert f"Eq. {number} " in fault
    assert "copy.of_it" in fault
    (fault,) = paper_map.find_faults([*places, replace(again, equation=8)])
    assert fault == "Eq. 8 should be implemented by 0 functions, it is claimed by copy.of_it"


def test_the_tool_runs_without_the_package(tmp_path: Path) -> None:
    """It is part of `make docs` and reads source text only."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "paper_map.py").write_text((ROOT / "tools" / "paper_map.py").read_text())
    for place in paper_map.find_places():
        path = tmp_path / place.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((ROOT / place.path).read_text())
    command = [sys.executable, "-I", "-S", str(tmp_path / "tools" / "paper_map.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "docs/paper_map.md: 9 functions, 7 equations\n"
    assert (tmp_path / "docs" / "paper_map.md").read_text() == paper_map.render_page(paper_map.find_places())
