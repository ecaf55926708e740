"""The README's Python lines run as they stand, after a demo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mta.cli.main import app

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_five_lines_personalize_a_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["demo", "--base", "tiny-random"])
    assert result.exit_code == 0, result.output
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert "smollm2-135m" in block
    capsys.readouterr()
    scope: dict[str, object] = {}
    exec(block.replace("smollm2-135m", "tiny-random"), scope)
    assert scope["me"].adapter.rank == scope["anew"].adapter.rank
    assert scope["anew"].updates > 0
    assert capsys.readouterr().out.endswith("\n")
