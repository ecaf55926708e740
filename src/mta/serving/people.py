"""What a server answers a person with: the adapter that fits what is known of her, and the prompt.

Nothing is known: the base model or the bank's population adapter, as configured. A history: the bank's nearest anchors,
merged. Adapted: those she was adapted over, and her own part on top.

Example:
    >>> people = People(base, Composition(store=store, bank=bank, encoder=encoder), task=task, prompts=prompts)
    >>> people.served(user, way="mta").what
    'merged'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mta.bank import Bank
from mta.base_model import BaseModel
from mta.characters import whole_characters
from mta.config import PromptConfig
from mta.errors import BankError, DataError, unknown_name
from mta.lora.adapter import Adapter, AdapterSum, map_tensors
from mta.merging import Match
from mta.packing import TokenRow
from mta.prompting import render
from mta.records import HistoryItem, Query, User
from mta.serving.adapter_cache import AdapterCache
from mta.serving.composition import Composition, over
from mta.serving.settings import ServeConfig
from mta.serving.user_store import StoredUser, UserStore
from mta.tasks.examples import query_examples
from mta.tasks.task import Task

MTA, MERGED, RAG, BASE = "mta", "mta-merged", "rag", "base"
WAYS: Mapping[str, str] = {
    MTA: "the best there is for the person: adapted, else merged, else what unknown people get",
    MERGED: "the person's anchors merged, without an own part",
    RAG: "the base model, shown the person's most fitting items",
    BASE: "the base model, shown nothing of the person",
}
"""Ways to be answered, which are the models of the API -> what they are."""


@dataclass(frozen=True, slots=True)
class Served:
    """What answers one request."""

    what: str
    """ "base", "population", "merged" or "adapted"."""
    adapter: AdapterSum | None = None
    revision: int = 0
    """Of the person's own part; 0: there is none."""
    match: Match | None = None
    """The anchors in it."""


class People:
    """Finds what answers whom. Methods may be called from any thread.

    Args:
        base: the frozen model.
        composition: of people's adapters, over the store and the bank.
        task: what people ask; the bank's where there is one.
        prompts: how it is asked; the bank's where there is one.
        config: the server's settings.

    Raises:
        BankError: the bank belongs to another base model, or lacks the population adapter that is to answer unknown
            people.
    """

    def __init__(
        self, base: BaseModel, composition: Composition, *, task: Task, prompts: PromptConfig, config: ServeConfig
    ) -> None:
        self.base, self.task, self.prompts, self.config = base, task, prompts, config
        self.cache = AdapterCache(most_bytes=config.cache_mb << 20)
        if bank := composition.bank:
            bank.check_base(base)
            if config.unknown == "population" and bank.population is None:
                raise BankError("the bank has no population adapter to answer unknown people with; use --unknown base")
            composition = replace(composition, bank=self._in_the_models_numbers(bank))
        self.composition = composition

    @property
    def store(self) -> UserStore:
        """The people."""
        return self.composition.store

    def _in_the_models_numbers(self, bank: Bank) -> Bank:
        """Return a bank whose adapters batches need not turn into the model's number format."""
        adapters = {name: self._cast(adapter) for name, adapter in bank.adapters.items()}
        return replace(bank, adapters=adapters, population=self._cast(bank.population) if bank.population else None)

    def _cast(self, adapter: Adapter) -> Adapter:
        return map_tensors(adapter, lambda tensor: tensor.to(self.base.device, self.base.dtype))

    # what answers -------------------------------------------------------------------------------------------------

    def served(self, user: StoredUser | None, *, way: str) -> Served:
        """Return what answers a person; None is somebody unknown.

        Raises:
            AdapterError: her stored adapter is damaged.
            NotFound: no such way.
        """
        if way not in WAYS:
            raise unknown_name("model", way, WAYS)
        if way in (RAG, BASE):
            return Served("base")
        if user is not None and user.revision and way == MTA and (found := self._adapted(user)):
            return found
        if user is not None and user.items and self.composition.bank:
            match = self.composition.match(user)
            return Served("merged", self.composition.merged(match), match=match)
        return self._unknown()

    def _unknown(self) -> Served:
        bank = self.composition.bank
        if self.config.unknown == "population" and bank and bank.population:
            return Served("population", AdapterSum(((1.0, bank.population),)))
        return Served("base")

    def _adapted(self, user: StoredUser) -> Served | None:
        """Return a person's own part over what it was trained over; None where that was another bank."""
        head = self.store.load_head(user)
        if head is None or not self.composition.fits(head):
            return None
        own = self.cache.get(user_id=user.id, revision=head.number)
        if own is None:
            revision = self.store.load_revision(user)
            if revision is None or not self.composition.fits(revision.head):
                return None
            head = revision.head  # a new one may have come in between
            own = self._cast(self.composition.own(revision))
            self.cache.put(user_id=user.id, revision=head.number, adapter=own)
        return Served("adapted", over(self.composition.beneath(head), own), head.number, head.match)

    # prompts ------------------------------------------------------------------------------------------------------

    def prompt(self, user: StoredUser | None, text: str, *, way: str, reserve: int) -> TokenRow:
        """Return the prompt of a question in the task's own form.

        Args:
            user: who asks; None is somebody unknown.
            text: the question as the task's data has it.
            way: one of `WAYS`; the base model is shown nothing of the person.
            reserve: tokens to keep free for the answer.

        Raises:
            DataError: the text is not a question of the task, or too long.
        """
        shown = 0 if way == BASE else max(self.prompts.history_k, int(way == RAG))
        history = self.store.history(user) if user is not None and shown else ()
        asked = User(user.name if user else "nobody", history, (Query("question", text),))
        (example,) = query_examples(self.task, asked, history_k=shown)
        prompt = render(self.task, example, replace(self.prompts, history_k=shown))
        return self.base.tokens.row(prompt, None, self.prompts, reserve=reserve)

    def raw_prompt(self, text: str, *, reserve: int) -> TokenRow:
        """Return a text as a prompt to go on with.

        Raises:
            DataError: it is blank, or too long with the answer.
        """
        tokens = self.base.tokens
        ids = tuple(tokens.tokenizer(whole_characters(text), add_special_tokens=True).input_ids)
        if not ids:
            raise DataError("the prompt is blank; give it a text")
        if len(ids) + reserve > tokens.context:
            raise DataError(
                f"the prompt has {len(ids)} tokens and {reserve} are asked for; the model takes {tokens.context}"
            )
        return TokenRow(ids, ())

    def check_items(self, items: Sequence[HistoryItem]) -> None:
        """Check that items can be history of the task.

        Raises:
            DataError: a field is missing.
        """
        for item in items:
            missing = [name for name in self.task.required_fields if name not in item.fields]
            if missing:
                raise DataError(
                    f"history item {item.item_id[:40]!r} lacks {', '.join(missing)}; an item of {self.task.task_id} "
                    f"has {', '.join(self.task.required_fields)}"
                )
