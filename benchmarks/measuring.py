"""Time several ways of doing the same work so that their ratios can be trusted.

The ways take turns within one process, so that a machine that slows down slows all of them; medians are of ratios
within a turn. A turn during which the machine's own speed moves is made again; where that helps little the steadiest
turns are taken, and it is said by how much they moved. A machine that does something else meanwhile is refused.

Example:
    >>> times = take_turns({"ours": ours, "theirs": theirs}, repeats=5)
    >>> ratio(times, "theirs", "ours")
    1.8
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from mta.errors import MtaError
from mta.files import write_json, write_text
from mta.runtime import versions

T = TypeVar("T")

BUSY = 10.0
"""Percent of all processors above which a machine counts as doing something else."""
SIDE, PRODUCTS = 1024, 4
"""Rows and columns of the fixed product, and how often it is made."""
STEADY = 10.0
"""Percent by which a fixed product may change during a turn that counts."""
SPARE = 2
"""Turns that may be made again."""
LOOK_S = 3.0
"""Seconds that are looked at."""
BEATEN = 1.2
"""Times the best contender's time from which a contender is given up."""
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What a processor may have for products, as Linux calls it."""
ELSEWHERE = {"--data": "DATA", "--out": "", "--folder": "", "--work": ""}
"""Options that say where things are on the machine at hand -> what stands for it in a command that is told."""
WORTH_TELLING_S = 1.0
"""Seconds from which a way's time is told as it comes."""
LONG_S = 60.0
"""Seconds from which what grows with a size is measured once only."""


class Times(dict[str, list[float]]):
    """Seconds of every turn that counts, by way."""

    def __init__(
        self,
        seconds: Mapping[str, list[float]],
        turns: Mapping[int, float],
        given_up: Mapping[str, list[float]] | None = None,
    ) -> None:
        super().__init__(seconds)
        self.turns = dict(turns)
        """Number of a turn, the warm-up being 0 -> percent by which a fixed product's time changed during it."""
        self.given_up = dict(given_up or {})
        """Contender beaten by far -> seconds of the warm-up and of the first turn."""

    @property
    def moved(self) -> float:
        """The largest change during a turn that counts, in percent."""
        return round(max(map(abs, self.turns.values())), 1)

    def record(self) -> dict[str, Any]:
        """Return all of it for a JSON file, so that every figure made of it can be made again."""
        return {
            "moved, %": {str(number): round(percent, 1) for number, percent in self.turns.items()},
            "seconds": {name: [round(one, 4) for one in found] for name, found in self.items()},
            "given up, s": {name: [round(one, 4) for one in found] for name, found in self.given_up.items()},
        }


def run(main: Callable[[], None]) -> None:
    """Run a script; what is wrong with its input ends it with the message alone."""
    try:
        main()
    except MtaError as error:
        raise SystemExit(f"error: {error}") from error


def refuse_busy(*, anyway: bool) -> float:
    """Return the percentage of the processors in use; where it is high, end the script, unless told not to."""
    used: float = psutil.cpu_percent(interval=LOOK_S)
    if used > BUSY and not anyway:
        raise SystemExit(
            f"{used:.0f} % of the processors are in use: something else runs here, and times would mean little; "
            "stop it and try again, or pass --anyway"
        )
    return used


def watched(work: Callable[[], T], *, anyway: bool) -> tuple[T, dict[str, Any]]:
    """Measure on a machine that does nothing else, before and after.

    Returns:
        What the work returns, and what it was measured on and by: see `machine`, how much of the processors something
        else used before and after, and by how many percent the time of a fixed product of matrices has changed from
        beginning to end. Ratios are taken within turns, whose own speed is watched (`take_turns`); what is measured
        without turns should be read with this change in mind.
    """
    used = [refuse_busy(anyway=anyway)]
    where, before = machine(), product_seconds()
    found = work()
    moved = 100 * (product_seconds() / before - 1)
    used.append(refuse_busy(anyway=anyway))
    return found, {**where, "in use before and after, %": used, "speed moved, %": round(moved, 1)}


def product_seconds(dtype: torch.dtype = torch.float32) -> float:
    """Return what four products of matrices of 1,024 rows and columns take here, the least of some."""
    one = torch.ones(SIDE, SIDE, dtype=dtype)
    times = []
    for _ in range(20 if dtype == torch.float32 else 3):
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            one @ one
        times.append(time.perf_counter() - started)
    return min(times)


def take_turns(
    ways: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    anyway: bool = False,
    contenders: Collection[str] = (),
    after_warm_up: Callable[[], object] = lambda: None,
) -> Times:
    """Run every way once to warm up, then in turn until `repeats` turns are good.

    Every turn begins with another way, so that none always runs on the machine as the same one has left it. A turn
    during which the machine's own speed has moved is not good, and another one is made, `SPARE` times. Where that is
    not enough, the steadiest turns are taken. What takes long is told as it comes.

    Args:
        ways: name -> what to time.
        repeats: turns that count, after the first.
        anyway: take every turn for good.
        contenders: ways of which only the best counts: those that are beaten by far both in the warm-up and in the
            first turn are left out of the others, and of what is returned.
        after_warm_up: called once every way has run once; the place to refuse ways that do not do the same.
    """
    left = dict(ways)
    seconds = {0: _turn(left, "warm-up")}
    after_warm_up()
    moved: dict[int, float] = {}
    given_up: dict[str, list[float]] = {}
    for number in range(1, repeats + SPARE + 1):
        before = product_seconds()
        seconds[number] = _turn(_turned(left, number), f"turn {number}")
        moved[number] = 100 * (product_seconds() / before - 1)
        if number == 1:
            beaten = set.intersection(*(_beaten(seconds[turn], contenders) for turn in (0, 1)))
            given_up = {name: [seconds[turn][name] for turn in (0, 1)] for name in left if name in beaten}
            left = {name: work for name, work in left.items() if name not in beaten}
        if abs(moved[number]) > STEADY:
            tell(f"turn {number}: the time of a fixed product of matrices moved by {moved[number]:+.0f} %")
        if sum(anyway or abs(percent) <= STEADY for percent in moved.values()) == repeats:
            break
    kept = list(moved) if anyway else sorted(moved, key=lambda number: abs(moved[number]))[:repeats]
    kept.sort()
    return Times(
        {name: [seconds[number][name] for number in kept] for name in left},
        {number: moved[number] for number in kept},
        given_up,
    )


def _turned(ways: Mapping[str, Callable[[], object]], by: int) -> dict[str, Callable[[], object]]:
    """Let another way be the first one."""
    names = list(ways)
    start = by % len(names)
    return {name: ways[name] for name in names[start:] + names[:start]}


def _beaten(seconds: Mapping[str, float], contenders: Collection[str]) -> set[str]:
    """Return the contenders that took far longer than the best of them."""
    best = min((seconds[name] for name in contenders), default=0.0)
    return {name for name in contenders if seconds[name] > BEATEN * best}


def _turn(ways: Mapping[str, Callable[[], object]], title: str) -> dict[str, float]:
    """Run every way once; return the seconds of each."""
    taken = {}
    for name, work in ways.items():
        started = time.perf_counter()
        work()
        taken[name] = time.perf_counter() - started
        if taken[name] > WORTH_TELLING_S:
            tell(f"{title}: {name} {taken[name]:.2f} s")
    return taken


def tell(text: str) -> None:
    """Say how far a long measurement is."""
    print(text, file=sys.stderr, flush=True)


def ratio(times: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    """Return the median over turns of one way's time divided by another's."""
    return round(statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True)), 3)


def rows_of(times: Mapping[str, Sequence[float]], *, units: float, unit: str) -> dict[str, dict[str, float]]:
    """Return each way's median, extremes, and units of work per second."""
    return {
        name: {
            "median_s": round(statistics.median(found), 3),
            "min_s": round(min(found), 3),
            "max_s": round(max(found), 3),
            f"{unit}_per_s": round(units / statistics.median(found), 2),
        }
        for name, found in times.items()
    }


def powers_of_ten(smallest: int, largest: int) -> list[int]:
    """Return powers of ten from `smallest` up to `largest`."""
    found = [min(smallest, largest)]
    while found[-1] * 10 <= largest:
        found.append(found[-1] * 10)
    return found


def case_options(doc: str | None, cases: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser with the options of scripts that run cases of `train.py`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with LaMP_1 to LaMP_5; invented people without it")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--case", action="append", choices=list(cases), help="repeat it")
    parser.add_argument("--out", type=Path, help="folder")
    return parser


def steadiness(found: Mapping[str, Any]) -> str:
    """Say how much the machine's speed moved during the turns of a result."""
    return f"Within a turn, the time of a fixed product moved by at most {found['moved within a turn, %']} %."


def machine() -> dict[str, Any]:
    """Describe what is measured on, and by which command."""
    return {
        "command": command(sys.argv),
        "processor": _processor(),
        "units": [unit for unit in UNITS if unit in _cpu_flags()],
        "gflops": {str(dtype).removeprefix("torch."): _gflops(dtype) for dtype in (torch.float32, torch.bfloat16)},
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def command(words: Sequence[str]) -> str:
    """Return a command that does the same anywhere: without where it reads and writes here."""
    told, rest = ["python", f"benchmarks/{Path(words[0]).name}"], iter(words[1:])
    for word in rest:
        option, together, _ = word.partition("=")
        if option in ELSEWHERE:
            if not together:
                next(rest, None)
            told += [option, ELSEWHERE[option]] if ELSEWHERE[option] else []
        else:
            told.append(word)
    return shlex.join(told)


def _gflops(dtype: torch.dtype) -> int:
    """Return the speed of the fixed product, in 10^9 multiplications and additions a second."""
    return round(PRODUCTS * 2 * SIDE**3 / product_seconds(dtype) / 1e9)


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _cpuinfo(key: str) -> str:
    """Return what Linux says of its first processor; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; all columns but the first are set to the right."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def write(out: Path | None, result: Mapping[str, Any], page: str) -> None:
    """Print a page and, where asked for, write it beside its JSON."""
    print(page)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, dict(result))
        write_text(out.with_suffix(".md"), page + "\n")
