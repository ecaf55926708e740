"""Small helpings of `benchmarks/serve_faults.py` and `benchmarks/serve_abuse.py`: real processes, killed and abused."""

from __future__ import annotations

import pytest

import serve_abuse
import serve_faults
from postgres_server import missing


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_a_killed_server_loses_nothing_it_has_acknowledged(store: str) -> None:
    if store == "postgresql" and missing():
        pytest.skip(missing())
    counts = serve_faults.suffer(2, store, seed=1)
    assert counts["kills"] == 2
    assert counts["items: 200"] > 0
    assert counts["jobs done"] == counts["adaptations: 202"] > 0
    assert counts["adapters read whole"] > 0


def test_an_abused_server_refuses_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_abuse, "SLOW_S", 2.0)
    counts = serve_abuse.suffer(3, seed=1)
    assert counts["honest answers"] > 0
    assert counts["too large"] == {"413": 3}
    assert set(counts["wrong keys"]) == {"401"}
