"""Every method by its name in the tables. A method is one function `(users, resources) -> PersonalizedUsers`.

Merge-then-adapt and what is left of it without one part are rows of `PARTS`; whoever keeps, restores or writes adapters
asks that table. A new rival is one function in a file of its own and one line in `METHODS`; where it means something
for some tasks only, one line in `ONLY_FOR` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from mta.baselines.averaged_anchors import averaged_anchors
from mta.baselines.blended import blended, population_blended, swapped_blended
from mta.baselines.classical import CLASSICAL_ROWS, classical_fits
from mta.baselines.classical_method import classical_method
from mta.baselines.combined import CombineConfig, combined
from mta.baselines.label_prior import prior_fits
from mta.baselines.oppu import PUBLISHED as PUBLISHED_OPPU
from mta.baselines.oppu import OppuConfig, oppu
from mta.baselines.per_pcs import PerPcsConfig, per_pcs
from mta.baselines.pooled_method import with_all_sources, with_memory
from mta.baselines.population import population, population_adapt, population_matched_adapt
from mta.baselines.prior_method import with_calibration, with_label_prior
from mta.baselines.proper import proper
from mta.baselines.rag import rag
from mta.baselines.roles import CALIBRATED, MEMORY, POOLED, PRIOR, stem_of
from mta.baselines.simple import CONTROLS, control_fits, simple_method
from mta.baselines.sources_alone import sources_alone
from mta.baselines.swapped import swapped_user
from mta.config import MatchConfig, MergeConfig
from mta.errors import ConfigError, NotFound, unknown_name
from mta.personalize import Method, Personalized, PersonalizedUsers, Resources, personalize_users, renderer
from mta.records import User
from mta.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a method puts on top of the base model, and what it does otherwise than the run is asked to."""

    merged: bool = True
    """Anchors, merged."""
    adapted: bool = True
    """An adapter trained on the user's own examples."""
    mode: str = ""
    """How anchors are merged (`MergeConfig.mode`), whatever is asked for; "" as asked."""
    weights: str = ""
    """How they are weighed (`MergeConfig.weights`); "" as asked."""
    anchors: str = ""
    """Which anchors are taken (`MatchConfig.anchors`); "" as asked."""

    def merging(self, asked: MergeConfig) -> MergeConfig:
        """Return how this method merges where `asked` is asked for."""
        return replace(asked, mode=self.mode or asked.mode, weights=self.weights or asked.weights)

    def matching(self, asked: MatchConfig) -> MatchConfig:
        """Return how this method chooses anchors where `asked` is asked for."""
        return replace(asked, anchors=self.anchors or asked.anchors)


PARTS: Mapping[str, Parts] = MappingProxyType(
    {
        "merged-only": Parts(adapted=False),
        "merged-only-linear": Parts(adapted=False, mode="linear"),
        "merged-only-random": Parts(adapted=False, anchors="random"),
        "merged-only-uniform": Parts(adapted=False, weights="uniform"),
        "merged-only-search": Parts(adapted=False, weights="search"),
        "merged-only-evidence": Parts(adapted=False, weights="evidence"),
        "adapt-only": Parts(merged=False),
        "mta": Parts(),
        "mta-linear": Parts(mode="linear"),
        "mta-softmax": Parts(weights="softmax"),
        "mta-search": Parts(weights="search"),
        "mta-evidence": Parts(weights="evidence"),
        "random-anchors": Parts(anchors="random"),
        "uniform-weights": Parts(weights="uniform"),
    }
)
"""Merge-then-adapt, whole, in parts, and with one of its choices made otherwise."""

RAG_MTA_K = 3
"""Items shown in every prompt of "rag+mta"; the other methods show the run's own number, usually one."""


def base_model(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """The bare base model with the same prompts."""
    render = renderer(resources.task, resources.prompts)
    return PersonalizedUsers(
        {user.user_id: Personalized(user, resources.task, None, render, resources.prompts) for user in users}
    )


def rag_mta(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
    """Merge-then-adapt with more retrieved items in the prompts of adaptation and answers; the bank is the same."""
    prompts = replace(resources.prompts, history_k=max(RAG_MTA_K, resources.prompts.history_k))
    return personalize_users(users, replace(resources, prompts=prompts), name="rag+mta")


def _of_parts(name: str, parts: Parts) -> Method:
    def method(users: Sequence[User], resources: Resources) -> PersonalizedUsers:
        asked = replace(resources, merge=parts.merging(resources.merge), match=parts.matching(resources.match))
        return personalize_users(users, asked, merged=parts.merged, adapted=parts.adapted, name=name)

    return method


def _oppu(name: str, config: OppuConfig) -> Method:
    return partial(oppu, config=config, name=name)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "base": base_model,
        **{name: simple_method(control) for name, control in CONTROLS.items()},
        **{name: classical_method(name) for name in CLASSICAL_ROWS},
        "no-model": sources_alone,
        **{f"rag-{k}": partial(rag, history_k=k) for k in (1, 3, 5)},
        **{f"rag-dense-{k}": partial(rag, history_k=k, dense=True) for k in (1, 3, 5)},
        "population": population,
        "population-adapt": population_adapt,
        "population-matched-adapt": population_matched_adapt,
        "population-blended": population_blended,
        "oppu": _oppu("oppu", OppuConfig()),
        "oppu-k0": _oppu("oppu-k0", OppuConfig(history_k=0)),
        "oppu-qv": _oppu("oppu-qv", PUBLISHED_OPPU),
        "oppu-task": _oppu("oppu-task", OppuConfig(task_adapt="population")),
        "oppu-k0-task": _oppu("oppu-k0-task", OppuConfig(task_adapt="population", history_k=0)),
        "per-pcs": per_pcs,
        "per-pcs-task": partial(per_pcs, config=PerPcsConfig(task_adapt="population"), name="per-pcs-task"),
        "proper": proper,
        **{name: _of_parts(name, parts) for name, parts in PARTS.items()},
        "mta-gated": partial(combined, config=CombineConfig(how="gated")),
        "mta-blended": blended,
        "mta-averaged": partial(combined, config=CombineConfig(how="averaged")),
        "averaged-anchors": averaged_anchors,
        "swapped-user": swapped_user,
        "swapped-blended": swapped_blended,
        "rag+mta": rag_mta,
    }
)

CORRECTIONS: Mapping[str, Callable[[Method], Method]] = MappingProxyType(
    {PRIOR: with_label_prior, CALIBRATED: with_calibration, MEMORY: with_memory, POOLED: with_all_sources}
)
"""Ending of a name -> how it changes the answers of the method before it."""
ONLY_FOR: Mapping[str, Callable[[Task], bool]] = MappingProxyType(
    {
        **{name: partial(control_fits, name) for name in CONTROLS},
        **dict.fromkeys((*CLASSICAL_ROWS, "no-model"), classical_fits),
    }
)
"""Methods that mean something for some tasks only."""
WITHOUT_MODEL = (*CONTROLS, *CLASSICAL_ROWS, "no-model")
"""Methods that do not ask the base model."""
SEEDLESS = ("base", *WITHOUT_MODEL, *(name for name in METHODS if name.startswith("rag-")))
"""Methods that train no adapter and leave nothing to chance: one run of them stands for all seeds."""
OVER_TASK_ADAPTER: Mapping[str, str] = MappingProxyType(
    {"oppu": "oppu-task", "oppu-k0": "oppu-k0-task", "per-pcs": "per-pcs-task"}
)
"""Row on the bare base model -> the same over the adapter trained on other users' data."""
SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "usual": (
            *("base", *CONTROLS, *CLASSICAL_ROWS, "population", "population-adapt"),
            *("merged-only-random", "merged-only-uniform", "swapped-user"),
            *("adapt-only", "merged-only", "merged-only-linear", "mta"),
        ),
        "tables": (
            *("base", *CONTROLS, *CLASSICAL_ROWS, "no-model"),
            *("rag-1", "rag-3", "rag-5", "oppu", "oppu-task", "per-pcs", "per-pcs-task", "proper"),
            *("population", "population-adapt", "population-matched-adapt"),
            *("merged-only-random", "merged-only-uniform", "random-anchors", "uniform-weights", "swapped-user"),
            *("adapt-only", "merged-only", "merged-only-linear", "mta", "mta+prior", "rag+mta"),
        ),
    }
)
"""Name that stands for several methods -> they.

"usual": the method, its parts, and the controls that cost least; "tables": the paper's tables 1 and 2, with every
control.
"""


def depends_on_seed(name: str) -> bool:
    """Say whether a method may answer otherwise under another seed."""
    return name not in SEEDLESS


def find_method(name: str) -> Method:
    """Return the method called `name`; with an ending, the method before it with corrected label scores.

    Raises:
        NotFound: there is none; the message lists those there are, and the names of sets.
    """
    stem = stem_of(name)
    if stem not in METHODS:
        raise unknown_name("method", name, [*METHODS, *SETS])
    ending = name.removeprefix(stem)
    if ending and stem in WITHOUT_MODEL:
        raise NotFound(f"method {name!r} does not exist: {stem} has no label scores to correct; leave the {ending} out")
    return CORRECTIONS[ending](METHODS[stem]) if ending else METHODS[stem]


def methods_for(task: Task, names: Sequence[str]) -> list[str]:
    """Return the methods with these names, each once, in the given order.

    A name in `SETS` stands for the methods there that mean something for the task.

    Raises:
        NotFound: a name is no method.
        ConfigError: a method named by itself means nothing for the task.
    """
    for name in names:
        if name not in SETS:
            find_method(name)
            if not fits(name, task):
                raise ConfigError(f"method {name} means nothing for {task.task_id} ({task.kind} answers); leave it out")
    every = [method for name in names for method in SETS.get(name, (name,))]
    return [name for name in dict.fromkeys(every) if fits(name, task)]


def beside_priors(names: Sequence[str], task: Task) -> list[str]:
    """Return the methods, each that asks the base model followed by itself under the label prior.

    Raises:
        ConfigError: the task has no labels with a meaning of their own.
    """
    if not prior_fits(task):
        raise ConfigError(
            f"label priors mean nothing for {task.task_id}, whose answers are no fixed labels; leave them out"
        )
    done = (*WITHOUT_MODEL, *(name for name in names if stem_of(name) != name))
    return [row for name in names for row in ((name,) if name in done else (name, f"{name}{PRIOR}"))]


def over_task_adapter(names: Sequence[str]) -> list[str]:
    """Return the methods, rivals' rows on the bare base model replaced by those over the task adapter.

    Raises:
        ConfigError: there is no such row among them.
    """
    if not any(name in OVER_TASK_ADAPTER for name in names):
        raise ConfigError(
            f"a task adapter lies beneath {', '.join(OVER_TASK_ADAPTER)} only, and the methods are "
            f"{', '.join(names)}; add --method oppu, or leave --task-adapt out"
        )
    return list(dict.fromkeys(OVER_TASK_ADAPTER.get(name, name) for name in names))


def fits(name: str, task: Task) -> bool:
    """Tell whether a method means something for a task."""
    if name.endswith(PRIOR) and not prior_fits(task):
        return False
    name = stem_of(name)
    return name not in ONLY_FOR or ONLY_FOR[name](task)
