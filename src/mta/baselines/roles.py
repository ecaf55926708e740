"""What the rows of a table are for: another form of merge-then-adapt, a control, or, with any other name, a rival.

`baselines.methods` says what each row does; here stand names only, so that tables can be read without a model.
"""

from __future__ import annotations

POPULATION = "population"
"""The control that a personalized method must beat: one adapter for everybody."""
SWAPPED = "swapped-user"
"""The control that takes another person's adapter."""
SWAPPED_BLENDED = "swapped-blended"
"""The same of the blend of merge-then-adapt with the merged anchors alone."""
SWAPS = (SWAPPED, SWAPPED_BLENDED)
WITHOUT_MERGING = (
    "base",
    "majority",
    "nearest",
    "lead",
    "classical-pool",
    "classical",
    "no-model",
    POPULATION,
    "population-adapt",
    "population-matched-adapt",
    "population-blended",
)
"""Controls that reach what they reach without merging anchors."""
ONE_THING_ELSE = (
    "random-anchors",
    "uniform-weights",
    "merged-only-random",
    "merged-only-uniform",
    SWAPPED,
    SWAPPED_BLENDED,
)
"""Controls that are merge-then-adapt but for one thing, which shows what that thing is worth."""
CONTROLS = (*WITHOUT_MERGING, *ONE_THING_ELSE)
"""Methods that show what is gained without personalization, or without the method's own idea."""
FORMS = (
    "mta",
    "mta-linear",
    "mta-softmax",
    "mta-search",
    "mta-evidence",
    "mta-gated",
    "mta-averaged",
    "mta-blended",
    "rag+mta",
    "adapt-only",
    "merged-only",
    "merged-only-linear",
    "merged-only-search",
    "merged-only-evidence",
    "averaged-anchors",
)
"""Merge-then-adapt, whole and in parts; none of them competes with another."""
PRIOR = "+prior"
"""Ending of a name: the method before it, its label scores corrected by the person's label prior."""
CALIBRATED = "+calibrated"
"""Ending of a name: the method before it, its label scores divided by a temperature and corrected by the prior."""

MEMORY = "+memory"
"""Ending of a name: the method before it, its label scores pooled with the prior and with what similar items got."""
POOLED = "+pooled"
"""Ending of a name: the method before it, its label scores pooled with all that is known without a language model."""
ENDINGS = (PRIOR, CALIBRATED, MEMORY, POOLED)


def stem_of(name: str) -> str:
    """Return the method whose answers a row corrects; a row that corrects none is its own."""
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)


def is_control(name: str) -> bool:
    """Tell whether a row is a control, with corrected label scores or not."""
    return stem_of(name) in CONTROLS


def is_rival(name: str, method: str) -> bool:
    """Tell whether `name` competes with `method`: it is no control, and not the method itself in another form.

    Other forms are, for "mta", `FORMS`, and for any method those whose name goes on after its own, as "oppu-k0" does.
    """
    stem, own = stem_of(name), stem_of(method)
    if stem in CONTROLS or (stem in FORMS and own in FORMS):
        return False
    return stem != own and not stem.startswith(f"{own}-")
