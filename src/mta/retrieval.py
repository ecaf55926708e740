"""Which items of a history fit a query best: BM25 over lower-cased, whitespace-separated words.

One index serves every query over one history. Leaving an item out hides it from the ranking, but its words
stay in the index's statistics (document frequencies, mean length): rebuilding the index for each left-out
item would change ranks rarely and cost a factor of the history's length. It knows nothing about tasks or prompts.

Example:
    >>> TextIndex(["a red car", "a blue boat"]).rank("blue", top_k=1)
    [1]
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import bm25s
import numpy as np


def words_of(text: str) -> list[str]:
    """Split a text into the words that BM25 compares: lower case, cut at white space, punctuation kept."""
    return text.lower().split()


class TextIndex:
    """A BM25 index (Lucene's variant, k1 1.5, b 0.75) over the texts of one history.

    Args:
        texts: one text an item, in the history's order; any of them, or all, may be blank.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._count = len(texts)
        self._bm25 = _index([words_of(text) for text in texts])

    def __len__(self) -> int:
        return self._count

    def rank(self, query: str, *, top_k: int, exclude: Collection[int] = ()) -> list[int]:
        """Return the positions of the `top_k` best texts, best first.

        Equal scores keep the order of the texts, so a query without a known word returns the first ones.

        Args:
            query: free text; words the index does not know count for nothing.
            top_k: most positions returned; 0 gives none.
            exclude: positions that must not be returned, for example the item the query was made from.
        """
        order = np.argsort(-self._scores(query), kind="stable").tolist() if top_k > 0 else []
        return [position for position in order if position not in exclude][: max(top_k, 0)]

    def _scores(self, query: str) -> np.ndarray:
        """One float64 score a text; 0 where no word is shared."""
        known = [] if self._bm25 is None else [word for word in words_of(query) if word in self._bm25.vocab_dict]
        if self._bm25 is None or not known:
            return np.zeros(self._count)
        return np.asarray(self._bm25.get_scores(known), dtype=np.float64)


def _index(corpus: list[list[str]]) -> bm25s.BM25 | None:
    if not any(corpus):
        return None  # bm25s cannot index a corpus without a single word
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG when imported
    bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75, dtype="float64", backend="numpy")
    bm25.index(corpus, show_progress=False)
    return bm25
