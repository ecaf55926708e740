"""How library functions tell a caller how far they are, without knowing who listens.

`progress("bank training")` opens a stage and gives a function `step(done, total)`. The library's default is `silent`;
the command line passes one that draws bars.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Step = Callable[[int, int], None]
"""(done, total) within one stage"""

Progress = Callable[[str], AbstractContextManager[Step]]
"""Stage name -> context manager that gives the stage's `Step`"""


def silent(stage: str) -> AbstractContextManager[Step]:
    """Ignore all progress."""
    return nullcontext(_ignore)


def _ignore(done: int, total: int) -> None:
    pass
