"""The whole per-user path: match anchors, merge them, adapt on the user's own examples, answer.

`personalize` is for one user, `personalize_users` for many at once; both give `Personalized` values, which is also what
every rival method gives. An adapter is held as a recipe, so that many users cost little memory until they are asked.

Example:
    >>> me = personalize(user, bank=bank, base=base)
    >>> answer(me, "Which tag ... description: A heist goes wrong.", base=base)
    'twist ending'
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch

from mta.adaptation import Adaptation, adapt_users
from mta.bank import Bank
from mta.base_model import BaseModel
from mta.compact import form_for, kind_of, own_rank
from mta.config import BY_HISTORY, EngineConfig, MatchConfig, MergeConfig, PromptConfig, TrainConfig
from mta.encoders import Encoder, document_vectors, load_encoder
from mta.errors import BankError, ConfigError
from mta.evidence import weigh_by_evidence
from mta.files import sha256_json
from mta.generation import Mixture, Request, generate
from mta.lora.adapter import AdapterSum, Recipe
from mta.lora.stacked import OverlayRecipe
from mta.merging import Match, match_anchors, match_in_blocks, random_anchors, reweigh
from mta.presets import default_preset, find_preset
from mta.progress import Progress, silent
from mta.prompting import render
from mta.records import Example, Prediction, Prompt, Query, User
from mta.tasks.examples import BM25, Retriever, query_examples
from mta.tasks.task import Task
from mta.training_store import StoredAdapter
from mta.user_rows import user_rows
from mta.vector_cache import VectorCache
from mta.weight_search import SearchConfig, search_weights

NO_MATCHES: Mapping[str, Match] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Personalized:
    """One user as one method serves them: an adapter (or none) and a way to render prompts."""

    user: User
    task: Task
    adapter: Recipe | OverlayRecipe | None
    """Everything on top of the base model; None is the bare base model."""
    render: Callable[[Example], Prompt]
    prompts: PromptConfig
    """Settings behind `render`, for the token limit."""
    match: Match | None = None
    """The anchors merged, where there are any."""
    updates: int = 0
    """Training updates made for this user."""
    adapter_bytes: int = 0
    """Bytes stored for this user alone (4 bytes a value), anchors not counted."""
    note: str = ""
    """What a reader should know, for example why the user was not adapted."""
    retriever: Retriever = BM25
    """How the items shown beside a query are chosen."""
    answers: Callable[[Sequence[Example]], Sequence[Prediction]] | None = None
    """Answers of a method that does not ask the base model; None asks it."""
    mixture: tuple[tuple[float, Personalized], ...] = ()
    """Ways to serve the user, each with its share, whose next tokens' probabilities are averaged; () means the adapter
    answers alone."""
    finish: Callable[[Prediction], Prediction] | None = None
    """Last change to each answer of the base model, for example by how often the user gives which label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What methods need to personalize users of one task."""

    base: BaseModel
    task: Task
    prompts: PromptConfig
    adapt: TrainConfig
    folder: Path
    """Where trained adapters are kept; a killed call continues from it."""
    bank: Bank | None = None
    pool: Sequence[User] = ()
    """Users the bank's anchors come from, for methods that train on them again."""
    encoder: Encoder | None = None
    """Matching encoder of the bank."""
    cache: VectorCache | None = None
    match: MatchConfig = field(default_factory=MatchConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    progress: Progress = silent

    def need_bank(self) -> Bank:
        """Return the bank.

        Raises:
            BankError: there is none.
        """
        if self.bank is None:
            raise BankError("this method merges anchors and no bank was given; build one with `mta bank build`")
        return self.bank


@dataclass(frozen=True, slots=True)
class PersonalizedUsers:
    """Many users as one method serves them."""

    users: Mapping[str, Personalized]
    train_seconds: float = 0.0
    """Wall time of the training done for each of these users alone."""
    cut_rows: int = 0
    """Training prompts that were cut to fit."""
    shared_seconds: float = 0.0
    """Wall time of the training on the pool beneath these users: bank, population adapter and the like, the whole of
    it, whoever else stands on it."""
    chosen: Mapping[str, float] = field(default_factory=dict)
    """Setting -> the value that this method chose on users of the pool."""
    chosen_by_users: Mapping[str, int] = field(default_factory=dict)
    """Way to serve -> how many users' own histories have chosen it."""


Method = Callable[[Sequence[User], Resources], PersonalizedUsers]
"""A way to personalize many users; see `baselines.methods`."""


def personalize_users(
    users: Sequence[User], resources: Resources, *, merged: bool = True, adapted: bool = True, name: str = "mta"
) -> PersonalizedUsers:
    """Personalize many users at once: merge, then adapt, or either alone.

    Source: MTA Eq. 1   Theta_u = merged anchors + adaptation, both additive on the frozen base

    Args:
        users: target users with histories.
        resources: base model, bank, settings.
        merged: merge the user's nearest anchors (False: adapt-only).
        adapted: train an adapter on the user's own examples (False: merged-only).
        name: sub-folder for the trained adapters.

    Raises:
        BankError: `merged` without a bank.
        ConfigError: the settings of merge and adaptation do not go together.
        DataError: a user has no history, or, with `merged`, is an anchor of the bank.
    """
    if merged and adapted and resources.merge.nobody and resources.adapt.form != "lora":
        raise ConfigError(
            f"form {resources.adapt.form!r} trains inside the merged anchors, and with `nobody` a user may be left "
            "with next to nothing of them; leave --nobody out, or train an adapter (--adapt-form lora)"
        )
    matches = match_users(users, resources) if merged else {}
    beneath = {name_: merged_recipe(match, resources.need_bank(), resources.merge) for name_, match in matches.items()}
    if adapted:
        people = adapt_over(users, resources, beneath=beneath, matches=matches, name=name)
    else:
        people = _put_together(users, resources, matches, beneath, Adaptation({}, {}, 0, 0.0))
    return replace(people, shared_seconds=resources.need_bank().train_seconds if merged else 0.0)


def adapt_over(
    users: Sequence[User],
    resources: Resources,
    *,
    beneath: Mapping[str, Recipe],
    matches: Mapping[str, Match] = NO_MATCHES,
    name: str,
) -> PersonalizedUsers:
    """Train each user's own adapter over a frozen composition and serve both together.

    Args:
        users: with histories.
        resources: base model and settings.
        beneath: user id -> what lies beneath; a user without an entry is adapted on the bare base model.
        matches: user id -> the anchors merged in it, where there are any.
        name: sub-folder for the trained adapters.

    Raises:
        ConfigError: own parts are to be trained inside of what lies beneath, and some users have nothing there.
    """
    return _put_together(users, resources, matches, beneath, _adapt(users, resources, beneath, name))


def _put_together(
    users: Sequence[User],
    resources: Resources,
    matches: Mapping[str, Match],
    beneath: Mapping[str, Recipe],
    own: Adaptation,
) -> PersonalizedUsers:
    return PersonalizedUsers(
        {user.user_id: _personalized(user, resources, matches, beneath, own) for user in users},
        own.seconds,
        own.cut_rows,
    )


def _adapt(users: Sequence[User], resources: Resources, beneath: Mapping[str, Recipe], name: str) -> Adaptation:
    train = form_for(resources.adapt, beneath)
    return adapt_users(
        resources.base,
        resources.task,
        users,
        resources.folder / name,
        beneath=beneath,
        train=train,
        prompts=resources.prompts,
        engine=resources.engine,
        kind=kind_of(train),
        progress=resources.progress,
    )


def _personalized(
    user: User,
    resources: Resources,
    matches: Mapping[str, Match],
    beneath: Mapping[str, Recipe],
    own: Adaptation,
) -> Personalized:
    stored = own.adapters.get(user.user_id)
    train, under = form_for(resources.adapt, beneath), beneath.get(user.user_id)
    own_part = stored.recipe(resources.base, rank=own_rank(train, under), beneath=under) if stored else None
    return Personalized(
        user=user,
        task=resources.task,
        adapter=stack_recipes([part for part in (under, own_part) if part]),
        render=renderer(resources.task, resources.prompts),
        prompts=resources.prompts,
        match=matches.get(user.user_id),
        updates=stored.note.updates if stored else 0,
        adapter_bytes=_stored_bytes(stored, resources.base, train) if stored else 0,
        note=own.skipped.get(user.user_id, ""),
    )


def _stored_bytes(stored: StoredAdapter, base: BaseModel, train: TrainConfig) -> int:
    if train.form != "lora":
        return sum(4 * tensor.numel() for tensor in stored.tensors(base).values())
    shapes = base.shapes(train.target_modules).values()
    return sum(4 * train.rank * (d_out + d_in) for d_out, d_in in shapes)


def renderer(task: Task, prompts: PromptConfig) -> Callable[[Example], Prompt]:
    """Return the function that renders a task's examples with these settings."""
    return lambda example: render(task, example, prompts)


def match_users(users: Sequence[User], resources: Resources) -> dict[str, Match]:
    """Find each user's anchors in the bank (Eq. 4) with their merge weights (Eq. 6, or as asked for).

    Raises:
        BankError: the encoder is not the one the bank's vectors were made with.
        ConfigError: top_k is larger than the bank.
        DataError: a user has no history, or is an anchor of the bank.
    """
    bank = resources.need_bank()
    found = match_to_bank(
        users,
        bank,
        encoder=resources.encoder or load_encoder(bank.config.match.encoder, device=resources.base.device),
        match=resources.match,
        cache=resources.cache,
        progress=resources.progress,
    )
    weighed = {name: reweigh(match, resources.merge) for name, match in found.items()}
    return _weighed_by_history(users, resources, weighed) if resources.merge.weights in BY_HISTORY else weighed


def _weighed_by_history(users: Sequence[User], resources: Resources, matches: Mapping[str, Match]) -> dict[str, Match]:
    """Weigh the anchors by what explains each user's own history best."""
    rows = {
        user.user_id: user_rows(
            resources.base.tokens, resources.task, user, train=resources.adapt, prompts=resources.prompts
        ).rows
        for user in users
    }
    seeded = partial(search_weights, config=SearchConfig(seed=resources.adapt.seed))
    weigh = seeded if resources.merge.weights == "search" else weigh_by_evidence
    return weigh(
        resources.base,
        resources.need_bank(),
        matches,
        rows,
        merging=resources.merge,
        engine=resources.engine,
        progress=resources.progress,
    )


def match_to_bank(
    users: Sequence[User],
    bank: Bank,
    *,
    encoder: Encoder,
    match: MatchConfig,
    cache: VectorCache | None = None,
    progress: Progress = silent,
) -> dict[str, Match]:
    """Find each user's anchors, with the weights of Eq. 6; needs no base model. See `match_users` for the errors."""
    bank.check_targets(users)
    if encoder.fingerprint != bank.matching_encoder:
        raise BankError(
            f"the bank's vectors were made with encoder {bank.config.match.encoder!r} "
            f"({bank.matching_encoder[:12]}), this is {encoder.name!r} ({encoder.fingerprint[:12]}); use the bank's"
        )
    with progress("matching") as step:
        vectors = document_vectors(
            encoder,
            users,
            bank.task.document_text,
            document=bank.config.match.document,
            cache=cache,
            on_progress=step,
        )
    draw = partial(random_anchors, seed=bank.config.anchors.seed)
    matches = match_in_blocks(
        [user.user_id for user in users],
        vectors,
        bank.anchor_ids,
        bank.active_vectors,
        choose=draw if match.anchors == "random" else match_anchors,
        top_k=match.top_k,
    )
    return {found.user_id: found for found in matches}


def merged_recipe(match: Match, bank: Bank, config: MergeConfig) -> Recipe:
    """Return the recipe of one user's merged adapter, over the bank's population adapter where it has one."""

    ranks = [bank.adapter(name).rank for name in match.anchor_ids]
    rank = sum(ranks) if config.mode == "cat" else max(ranks)
    beneath = bank.population.rank if bank.population else 0
    decides = [bank.checksum, match.anchor_ids, match.weights, config.mode, config.scale]
    return Recipe(sha256_json(decides), rank + beneath, lambda: bank.merged(match.anchor_ids, match.weights, config))


def stack_recipes(recipes: Sequence[Recipe]) -> Recipe | None:
    """Return the recipe of the sum of adapters; None for none."""
    if not recipes:
        return None
    if len(recipes) == 1:
        return recipes[0]
    return Recipe(
        sha256_json([each.fingerprint for each in recipes]),
        sum(each.rank for each in recipes),
        lambda: AdapterSum(tuple(term for each in recipes for term in each.parts().terms)),
    )


def personalize(
    user: User,
    *,
    bank: Bank,
    base: BaseModel,
    adapt: TrainConfig | None = None,
    merge: MergeConfig | None = None,
    top_k: int | None = None,
    folder: Path | None = None,
) -> Personalized:
    """Personalize one user: merge the nearest anchors, then adapt on the user's history.

    Args:
        user: with at least one history item.
        bank: a loaded bank.
        base: the base model the bank was trained on.
        adapt: settings of the user's adapter; the preset for small models where the base is small, else the paper's.
        merge: how anchors are merged; default exact.
        top_k: anchors merged; default the bank's setting.
        folder: where the trained adapter is kept; a temporary folder if not given.

    Raises:
        BankError: the bank belongs to another base model.
        DataError: the user has no history, or is an anchor of the bank.
    """
    bank.check_base(base)
    with tempfile.TemporaryDirectory() as temporary:
        resources = Resources(
            base=base,
            task=bank.task,
            prompts=bank.config.prompts,
            adapt=adapt or find_preset(default_preset(parameter_count(base)), bank.task.task_id).adapt,
            folder=folder or Path(temporary),
            bank=bank,
            match=replace(bank.config.match, top_k=_usual_top_k(bank) if top_k is None else top_k),
            merge=merge or MergeConfig(),
        )
        found = personalize_users([user], resources).users[user.user_id]
        if not isinstance(found.adapter, Recipe):
            return found
        kept = found.adapter.parts()  # before the folder is gone
        return replace(found, adapter=replace(found.adapter, parts=lambda: kept))


def _usual_top_k(bank: Bank) -> int:
    return min(bank.config.match.top_k, len(bank.anchor_ids))


def parameter_count(base: BaseModel) -> int:
    """Return the number of values in the base model."""
    return sum(parameter.numel() for parameter in base.model.parameters())


def answer(person: Personalized, text: str, *, base: BaseModel, engine: EngineConfig | None = None) -> str:
    """Answer one raw query of a person, in the task's input format.

    Raises:
        DataError: the text is not a query of the task.
    """
    if person.answers:
        return person.answers([_example(person, text)])[0].text
    ways = person.mixture or ((1.0, person),)
    asked = Mixture(tuple(_request(way, text, base) for _, way in ways), tuple(share for share, _ in ways))
    with torch.inference_mode():
        (completion,) = generate(
            base, [asked], max_new_tokens=person.task.max_new_tokens, engine=engine or EngineConfig()
        )
    return person.task.clean(completion)


def _example(person: Personalized, text: str) -> Example:
    asked = replace(person.user, queries=(Query("query", text),))
    (example,) = query_examples(person.task, asked, history_k=person.prompts.history_k, retriever=person.retriever)
    return example


def _request(person: Personalized, text: str, base: BaseModel) -> Request:
    rendered = person.render(_example(person, text))
    row = base.tokens.row(rendered, None, person.prompts, reserve=person.task.max_new_tokens)
    return Request(row, person.adapter.parts() if person.adapter else None)
