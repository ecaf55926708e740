"""What a person's adapter is made of: the bank's anchors that are nearest to her, merged, and her own part on top.

Needs no base model.

Example:
    >>> composition = Composition(store, bank=bank, encoder=encoder)
    >>> composition.match(user).anchor_ids
    ('pool-003', 'pool-007')
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from mta.bank import Bank
from mta.config import MergeConfig, from_dict, to_dict
from mta.encoders import Encoder, document_vectors
from mta.errors import BankError
from mta.files import sha256_json
from mta.lora.adapter import Adapter, AdapterSum
from mta.lora.core import own_part
from mta.merging import Match, match_anchors, match_in_blocks, reweigh
from mta.records import User
from mta.serving.user_store import Revision, RevisionHead, StoredMatch, StoredUser, UserStore


@dataclass(frozen=True, slots=True)
class Whole:
    """All of a person's adapter."""

    adapter: AdapterSum
    revision: int
    """Of the own part in it; 0: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """Finds the parts of people's adapters. Methods may be called from any thread."""

    store: UserStore
    bank: Bank | None = None
    encoder: Encoder | None = None
    """The one that the bank's vectors were made with; needed for people whose anchors are not known yet."""
    merge: MergeConfig = field(default_factory=MergeConfig)
    top_k: int = 2
    """Anchors of a person."""
    _encoding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def found_by(self) -> str:
        """Identifies how anchors are found and weighed: the bank, and the settings that decide. "" without a bank."""
        return sha256_json([self.bank.checksum, to_dict(self.merge), self.top_k]) if self.bank else ""

    @property
    def bank_checksum(self) -> str:
        """Identifies the bank; "" for none."""
        return self.bank.checksum if self.bank else ""

    def person(self, user: StoredUser) -> User:
        """Return a person with her history."""
        return User(user.name, self.store.history(user))

    def match(self, user: StoredUser) -> Match:
        """Return the anchors nearest to a person, found anew where her history or the bank has changed.

        Raises:
            BankError: there is no bank, or no encoder of its own.
            DataError: she has no history.
            NotFound: she has been deleted.
        """
        if self.bank is None:
            raise BankError("there are no anchors without a bank; name one with --bank")
        known = self.store.load_match(user)
        if known and known.found_by == self.found_by and known.items == user.items:
            return known.match
        return self._matched(user, self.bank)

    def _matched(self, user: StoredUser, bank: Bank) -> Match:
        if self.encoder is None or self.encoder.fingerprint != bank.matching_encoder:
            raise BankError(f"the bank's vectors were made with encoder {bank.config.match.encoder!r}; give that one")
        person = self.person(user)
        with self._encoding:  # tokenizers are not made for two threads
            vectors = document_vectors(
                self.encoder, [person], bank.task.document_text, document=bank.config.match.document
            )
        (nearest,) = match_in_blocks(
            [user.name],
            vectors,
            bank.anchor_ids,
            bank.active_vectors,
            choose=match_anchors,
            top_k=min(self.top_k, len(bank.anchor_ids)),
        )
        found = reweigh(nearest, self.merge)
        self.store.save_match(user, StoredMatch(found, vectors[0], self.found_by, len(person.history)))
        return found

    def merged(self, match: Match, merge: MergeConfig | None = None) -> AdapterSum | None:
        """Return the merged anchors of a match, by these settings or the present ones; None where there are none."""
        if self.bank is None or not match.anchor_ids:
            return None
        return self.bank.merged(match.anchor_ids, match.weights, merge or self.merge)

    def beneath(self, head: RevisionHead) -> AdapterSum | None:
        """Return what a revision was trained over, merged by the settings of that time."""
        return self.merged(head.match, from_dict(MergeConfig, head.note["merge"]) if "merge" in head.note else None)

    def fits(self, head: RevisionHead | None) -> bool:
        """Return whether a revision was trained over anchors of this bank."""
        return head is not None and head.bank == self.bank_checksum

    def own(self, revision: Revision) -> Adapter:
        """Return a revision's own part as an adapter."""
        return own_part(self.beneath(revision.head), revision.tensors)

    def revision(self, user: StoredUser) -> int:
        """Return the number of the revision that a person is answered with; 0: none fits, or none was trained."""
        head = self.store.load_head(user)
        return head.number if head is not None and self.fits(head) else 0

    def whole(self, user: StoredUser) -> Whole | None:
        """Return all of a person's adapter: adapted, else merged; None where nothing is known of her.

        Raises:
            AdapterError: her own part is damaged.
            BankError: there is no encoder to find her anchors with.
        """
        revision = self.store.load_revision(user)
        if revision is not None and self.fits(revision.head):
            return Whole(over(self.beneath(revision.head), self.own(revision)), revision.head.number)
        merged = self.merged(self.match(user)) if user.items and self.bank is not None else None
        return Whole(merged, 0) if merged else None


def over(beneath: AdapterSum | None, own: Adapter) -> AdapterSum:
    """Return an own part on top of what lies beneath it."""
    return AdapterSum((*(beneath.terms if beneath else ()), (1.0, own)))
