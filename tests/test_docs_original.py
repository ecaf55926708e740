"""The page for people who know the original scripts names only commands, options, files and functions that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mta.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "from_the_original.md"
TEXT = PAGE.read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "mta"
ORIGINAL_FLAGS = {
    "--candidate_path",
    "--task_name",
    "--k",
    "--top_k",
    "--model_name",
    "--alpha",
    "--lora_rank",
    "--learning_rate",
    "--num_train_epochs",
    "--help",
}


def _commands() -> dict[str, set[str]]:
    """Command as typed -> its options."""
    root = typer.main.get_command(app)

    def walk(command: object, name: str) -> Iterator[tuple[str, set[str]]]:
        for child, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{name} {child}".strip())
        yield name, {flag for param in getattr(command, "params", ()) for flag in (*param.opts, *param.secondary_opts)}

    return dict(walk(root, ""))


def test_every_command_on_the_page_exists() -> None:
    known = _commands()
    named = set(re.findall(r"`mta ([a-z]+(?: (?:build|show|download|split|stats|personas))?)\b", TEXT))
    assert named >= {"anchors", "bank build", "match", "merge", "adapt", "generate", "evaluate", "run", "export"}
    assert named <= known.keys()


def test_every_option_on_the_page_exists() -> None:
    known = set().union(*_commands().values())
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", TEXT)) - ORIGINAL_FLAGS
    assert len(named) > 20
    assert named <= known


def test_the_example_of_the_page_has_only_options_of_its_command() -> None:
    (example,) = re.findall(r"^```\nmta run (.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"--[a-z-]+", example)) <= _commands()["run"]


ROWS = [line for line in TEXT.splitlines() if re.search(r"\| [^|]*`[\w/]+\.py`[^|]*\|$", line)]


def test_most_defects_name_a_place_in_the_code() -> None:
    assert len(ROWS) > 35


@pytest.mark.parametrize("row", ROWS)
def test_every_place_in_the_code_exists(row: str) -> None:
    where = row.rstrip(" |").rsplit("|", 1)[1]
    for path, names in re.findall(r"`([\w/]+\.py)`(?: \(([^)]*)\))?", where):
        assert (SOURCE / path).is_file()
        tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert set(re.findall(r"`(\w+)`", names)) <= defined


def test_links_to_the_formats_page_lead_to_a_heading() -> None:
    page = (ROOT / "docs" / "file_formats.md").read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    for text, prefix in ((TEXT, "file_formats.md#"), (page, "#")):
        targets = re.findall(rf"\]\({re.escape(prefix)}([\w-]+)\)", text)
        assert targets
        assert set(targets) <= anchors


def test_links_inside_the_page_lead_to_a_heading() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors
