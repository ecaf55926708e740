"""From tokens to the text of an answer, piece by piece: what has been said is never taken back.

Example:
    >>> text = AnswerText(base.tokens.decode, stop=("END",))
    >>> "".join([*map(text.add, tokens), text.finish()])
    'a short answer'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

HELD_CHARS = 8
"""Characters held back while an answer may still be cut at a mark as long as this."""
HALF = "\ufffd"
"""What a character decodes to whose bytes have not all come."""


class AnswerText:
    """The growing text of one answer.

    Args:
        decode: token ids -> text.
        stop: texts that end the answer and are no part of it.
        clean: completion -> answer; None takes it as it is.
        whole: say nothing before the end, since cleaning may change everything.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        *,
        stop: Sequence[str] = (),
        clean: Callable[[str], str] | None = None,
        whole: bool = False,
    ) -> None:
        self._decode, self._stop, self._clean, self._whole = decode, tuple(stop), clean, whole
        self._ids: list[int] = []
        self._raw = ""
        self._said = ""
        self.stopped = False
        """A stop text has come; further tokens do not count."""

    def add(self, token: int) -> str:
        """Take the next token, not the one that ends the answer, and return what is sure by now and was not said."""
        if self.stopped:
            return ""
        self._ids.append(token)
        self._raw = self._decode(self._ids)
        at = min((place for text in self._stop if (place := self._raw.find(text)) >= 0), default=-1)
        if at >= 0:
            self._raw, self.stopped = self._raw[:at], True
        if self.stopped or self._whole:
            return ""
        text = self._cleaned(self._raw.rstrip(HALF))
        held = max((*map(len, self._stop), HELD_CHARS if self._clean else 0), default=0)
        sure = text[: max(0, len(text) - held)]
        return self._say(sure.rstrip() if self._clean else sure)

    def finish(self) -> str:
        """Return the rest of the answer."""
        return self._say(self._cleaned(self._raw))

    def _cleaned(self, text: str) -> str:
        return self._clean(text) if self._clean else text

    def _say(self, text: str) -> str:
        """Return what a text has beyond what was said; nothing where it is another one."""
        if not text.startswith(self._said):
            return ""
        new, self._said = text[len(self._said) :], max(text, self._said, key=len)
        return new
