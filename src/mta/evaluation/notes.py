"""What stands above and below a table of scores: which run it is, what the marks mean, what was capped or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mta.evaluation.formats import count_text
from mta.evaluation.marks import SIGNIFICANT, judged_method, opponents_of
from mta.evaluation.scores_file import finite, interval_of, shown_metrics


def rows_are(scores: Mapping[str, Any]) -> str:
    """Say what the rows of the table are: methods, or in a sweep the values of its setting."""
    sweep = scores.get("sweep")
    return f"{sweep['over']}, {sweep['method']}" if isinstance(sweep, Mapping) else "method"


def run_line(scores: Mapping[str, Any]) -> str:
    """Say which run this is and how much stands behind it."""
    return f"{scores['task']}, {basis_line(scores)}"


def basis_line(scores: Mapping[str, Any]) -> str:
    """Say how much stands behind a run: base model, seeds, people, queries."""
    seeds = seeds_text(scores)
    seed_text = "" if not seeds else f", seed {seeds}" if " " not in seeds else f", seeds {seeds}"
    return (
        f"base {scores['base']}{seed_text}: "
        f"{count_text(scores['people'], 'person', 'people')}, {count_text(scores['queries'], 'query', 'queries')}."
    )


def reading_line(scores: Mapping[str, Any]) -> str:
    """Say what the intervals and arrows mean."""
    intervals = (
        "Intervals: 95 %, percentile bootstrap that resamples people, not queries."
        if any(interval_of(method, metric) for method in scores["methods"].values() for metric in method["metrics"])
        else "No intervals: they resample people, and need at least two."
    )
    return f"{intervals} ↑ higher is better, ↓ lower is better."


def marks_line(scores: Mapping[str, Any], *, second: str) -> str:
    """Say what the marks mean; `second` is how the second best is shown, for example "Italics"."""
    marks = f"Bold: best point estimate. {second}: second best. Neither says more than that."
    name = judged_method(scores)
    if name is None:
        return marks
    if not any(opponents_of(scores, metric) for metric in shown_metrics(scores)):
        return f"{marks} No asterisks: they say that {name} beats the best rival and population, and need both."
    return (
        f"{marks} *: {name} beats both the best rival by that metric and population, each with a Holm-corrected "
        f"p < {SIGNIFICANT:.2f}; it is given to {name} only. Controls and other forms of {name} are no rivals."
    )


def method_notes(scores: Mapping[str, Any]) -> list[str]:
    """Say what a reader of the table must know: what sd means, what was capped, chosen, not adapted, or cut."""
    notes = {
        "Trained on at most": capped_items(scores),
        "Chosen on users of the pool": chosen(scores, "chosen_on_pool"),
        "Chosen by users' own histories, for how many": chosen(scores, "chosen_by_users"),
        "Not adapted": not_adapted(scores),
        "Prompts cut to fit the model": cut_prompts(scores),
    }
    return [*filter(None, [seeds_line(scores)]), *(f"{title}: {text}." for title, text in notes.items() if text)]


def seeds_line(scores: Mapping[str, Any]) -> str:
    """Say what the standard deviations are; "" where no method has several seeds."""
    several = any(method.get("seed_sd") for method in scores["methods"].values())
    return "sd: standard deviation between the scores of the seeds." if several else ""


def capped_items(scores: Mapping[str, Any]) -> str:
    """Say how many items of a history training sees at most; "" where it sees all, or it is not recorded."""
    settings = (scores.get("run") or {}).get("settings") or {}
    places = {"an anchor": (settings.get("bank") or {}).get("train"), "a target user": settings.get("adapt")}
    caps = {who: cap for who, train in places.items() if (cap := finite((train or {}).get("max_items")))}
    return " and ".join(f"{cap} history items of {who}" for who, cap in caps.items())


def chosen(scores: Mapping[str, Any], key: str) -> str:
    """Name what methods have chosen, as one part of their scores says, with the values (of several runs in order)."""
    parts = []
    for name, method in scores["methods"].items():
        found: dict[str, list[str]] = {}
        for run in method.get(key) or ():
            for setting, value in run.items():
                found.setdefault(str(setting), []).append(f"{value:g}" if finite(value) is not None else str(value))
        if found:
            same = {setting: values[:1] if len({*values}) == 1 else values for setting, values in found.items()}
            parts.append(f"{name} " + ", ".join(f"{setting} {' / '.join(values)}" for setting, values in same.items()))
    return "; ".join(parts)


def not_adapted(scores: Mapping[str, Any]) -> str:
    """Name the methods that answered users without an adapter of their own, with how many and why; "" for none."""
    found: dict[tuple[str, int], list[str]] = {}
    for name, method in scores["methods"].items():
        for why, count in (method.get("not_adapted") or {}).items():
            if number := finite(count):
                found.setdefault((str(why), int(number)), []).append(name)
    return "; ".join(
        f"{count_text(number, 'user', 'users')} ({why}) of {', '.join(names)}" for (why, number), names in found.items()
    )


def cut_prompts(scores: Mapping[str, Any]) -> str:
    """Count by method the prompts that were too long for the model, in answering and in training; "" for none."""
    parts = []
    for name, method in scores["methods"].items():
        places = {"answering": method.get("cut_prompts"), "training": method.get("cut_training_prompts")}
        found = [f"{number:,} in {place}" for place, count in places.items() if (number := finite(count))]
        if found:
            parts.append(f"{name} {' and '.join(found)}")
    return "; ".join(parts)


def comparison_line(scores: Mapping[str, Any]) -> str:
    """Say how the paired comparisons were made, and over which of them their p-values are corrected."""
    rows = scores.get("comparisons") or ()
    start = (
        "Difference: first minus second on the same queries, with a 95 % interval that resamples people. p: two-sided "
        "paired permutation test over people"
    )
    if not all("p_holm" in row for row in rows):
        return f"{start}, not corrected for the number of comparisons ({len(rows)}).{_smallest_p(scores['people'], 1)}"
    sizes = Counter((row.get("a"), row.get("metric")) for row in rows)
    most = max(sizes.values(), default=0)
    return (
        f"{start}. p (Holm): corrected over all methods that the first is compared with by the same metric (up to "
        f"{most}); metrics are not mixed.{_smallest_p(scores['people'], most)}"
    )


def _smallest_p(people: Any, comparisons: int) -> str:
    """Say so where there are too few people for any difference to count: of 2^n signs two are the most extreme."""
    if not isinstance(people, int) or people < 2:
        return ""
    smallest = comparisons * 2.0 ** (1 - min(people, 1000))  # so that no number, however large, is too much for it
    if smallest < SIGNIFICANT:
        return ""
    return (
        f" With {people} people and {comparisons} {'comparisons' if comparisons > 1 else 'comparison'} the smallest of "
        f"these p is {min(1.0, smallest):.3f} or more, however large the differences: nothing can count here."
    )


def seeds_text(scores: Mapping[str, Any]) -> str:
    """Write the seeds of a run one after the other."""
    seeds = scores["seeds"]
    return " ".join(map(str, seeds)) if isinstance(seeds, list | tuple) else str(seeds)
