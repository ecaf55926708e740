"""`import mta` is quick, and everything it promises is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mta


def _imported_for_type_checkers() -> set[str]:
    tree = ast.parse(Path(mta.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {name.name for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}


@pytest.mark.parametrize("name", mta.__all__)
def test_every_exported_name_resolves_to_the_thing_itself(name: str) -> None:
    found = getattr(mta, name)
    assert not isinstance(found, ModuleType)
    assert getattr(found, "__name__", name) == name
    assert name in dir(mta)


def test_the_three_lists_of_names_agree() -> None:
    assert set(mta.__all__) == set(mta._HOME) == _imported_for_type_checkers()


def test_import_loads_nothing_heavy() -> None:
    check = "import sys, mta; print([n for n in ('torch', 'numpy', 'typer', 'mta.config') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"


def test_function_that_shares_its_name_with_a_module_stays_the_function() -> None:
    import importlib

    module = importlib.import_module("mta.personalize")
    importlib.import_module("mta.evaluation.run")
    assert mta.personalize is module.personalize


def test_unknown_name_lists_those_that_are_there() -> None:
    with pytest.raises(AttributeError, match="load_bank"):
        mta.nonsense  # noqa: B018
