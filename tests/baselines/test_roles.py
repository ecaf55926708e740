"""What the rows of a table are for: every method has its place, and only rivals compete."""

from __future__ import annotations

from mta.baselines.classical import CLASSICAL_ROWS
from mta.baselines.methods import METHODS, PARTS
from mta.baselines.roles import CONTROLS, FORMS, ONE_THING_ELSE, is_control, is_rival
from mta.baselines.simple import CONTROLS as SIMPLE_CONTROLS


def test_every_method_has_its_place() -> None:
    """Who is neither a control nor a form of mta is a rival; a new one needs no line but its own in METHODS."""
    assert {*CONTROLS, *FORMS} <= set(METHODS)
    assert not set(CONTROLS) & set(FORMS)
    assert all(is_rival(name, "mta") for name in set(METHODS) - {*CONTROLS, *FORMS})
    assert {*SIMPLE_CONTROLS, *CLASSICAL_ROWS} < set(CONTROLS)
    made_of_others = {"rag+mta", "swapped-user", "mta-gated", "mta-averaged"}
    made_of_others |= {"averaged-anchors", "mta-blended", "swapped-blended"}
    assert set(PARTS) | made_of_others == {*FORMS, *ONE_THING_ELSE}


def test_who_is_a_rival() -> None:
    assert all(is_rival(name, "mta") for name in ("rag-1", "oppu", "oppu+prior", "per-pcs", "proper", "mta2", "mine"))
    others = (
        "mta",
        "mta-linear",
        "mta+prior",
        "mta-of-mine",
        "rag+mta",
        "adapt-only",
        "merged-only",
        "population-adapt",
    )
    assert not any(is_rival(name, "mta") for name in (*others, "base", "base+prior", "classical", "swapped-user"))
    assert is_rival("mta", "oppu")
    assert is_rival("merged-only", "oppu")
    assert not is_rival("oppu-k0", "oppu")
    assert not is_rival("adapt-only", "merged-only")


def test_a_control_stays_one_under_the_label_prior() -> None:
    assert is_control("population+prior")
    assert not is_control("oppu+prior")
