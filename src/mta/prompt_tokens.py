"""From a rendered prompt to token ids that fit the model: history is cut first, the answer never.

Knows how a tokenizer frames a chat; knows nothing of tasks or weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from mta.characters import whole_characters
from mta.config import PromptConfig
from mta.errors import ConfigError, DataError, ModelError
from mta.files import sha256_json
from mta.packing import TokenRow
from mta.records import Prompt


class PromptTokenizer:
    """Turns prompts and answers into `TokenRow`s with one tokenizer and one template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        context: longest sequence the model takes, in tokens.
    """

    def __init__(self, tokenizer: Any, *, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._control_tokens = tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))

    def uses_chat(self, config: PromptConfig) -> bool:
        """Say whether prompts are framed by the tokenizer's chat template.

        Raises:
            ConfigError: "chat" is asked for but the tokenizer has no template.
        """
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if config.template == "chat" and not has_template:
            raise ConfigError(
                'template is "chat" but this tokenizer has no chat template; use --template plain or auto'
            )
        return has_template and config.template != "plain"

    def row(self, prompt: Prompt, answer: str | None, config: PromptConfig, *, reserve: int = 0) -> TokenRow:
        """Tokenize a prompt and its answer, cutting the prompt to what fits.

        Args:
            prompt: rendered prompt.
            answer: text to learn or score; None leaves room for `reserve` generated tokens instead.
            config: prompt settings; the limit is min(config.max_tokens, the model's context).
            reserve: tokens to keep free after the prompt.

        Raises:
            DataError: instruction and answer alone are longer than the limit.
        """
        answer_ids = () if answer is None else self.answer_ids(answer, config)
        limit = min(config.max_tokens, self.context)
        room = limit - max(len(answer_ids), reserve)
        fitted, cut_words = cut_to_fit(prompt, lambda p: len(self.prompt_ids(p, config)), room)
        if fitted is None:
            raise DataError(
                f"a prompt's instruction and answer alone need more than {limit} tokens "
                f"({len(answer_ids)} of them the answer); raise --max-tokens (the model takes {self.context}) "
                "or shorten the record"
            )
        return TokenRow(self.prompt_ids(fitted, config), answer_ids, cut_words)

    def prompt_ids(self, prompt: Prompt, config: PromptConfig) -> tuple[int, ...]:
        """Tokenize a prompt, framed as a chat turn where the template asks for it."""
        if self.uses_chat(config):
            messages = [{"role": m.role, "content": self._disarmed(m.content)} for m in prompt.messages]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        return tuple(self.tokenizer(self._disarmed(prompt.text), add_special_tokens=True).input_ids)

    def answer_ids(self, answer: str, config: PromptConfig) -> tuple[int, ...]:
        """Tokenize an answer and add the end-of-answer token; without a chat frame it follows after a space."""
        text = self._disarmed(answer if self.uses_chat(config) else f" {answer}")
        return (*self.tokenizer(text, add_special_tokens=False).input_ids, self.end_id)

    def _disarmed(self, text: str) -> str:
        """Break up control tokens inside a person's text, so that no history can end a turn or speak as the system."""
        text = whole_characters(text)
        for token in self._control_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @cached_property
    def fingerprint(self) -> str:
        """Identifies how text becomes tokens: vocabulary, control tokens and chat template."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return sha256_json([vocabulary, self._control_tokens, getattr(self.tokenizer, "chat_template", None)])

    @property
    def end_id(self) -> int:
        """The token that ends an answer.

        Raises:
            ModelError: the tokenizer has none.
        """
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ModelError(
                "the tokenizer has no eos_token, so no answer would end; name one in tokenizer_config.json"
            )
        return int(end)

    def decode(self, ids: list[int]) -> str:
        """Turn generated ids into text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def cut_to_fit(prompt: Prompt, count: Callable[[Prompt], int], room: int) -> tuple[Prompt | None, int]:
    """Cut a prompt until `count` says it fits `room`: history from its end, then the payload from its end.

    Returns:
        (prompt that fits, words cut); (None, 0) if even the bare instruction does not fit.
    """
    if count(prompt) <= room:
        return prompt, 0
    history_words = sum(len(_words(item)) for item in prompt.history)
    payload_words = _words(prompt.payload)
    total = history_words + len(payload_words)

    def keep(words: int) -> Prompt:
        if words >= len(payload_words):
            return replace(prompt, history=_first_words(prompt.history, words - len(payload_words)))
        return replace(prompt, history=(), payload="".join(payload_words[:words]))

    low, high = -1, total + 1  # `low` words fit (or -1: unknown), `high` do not; `total` may: blank items have no words
    while high - low > 1:
        middle = (low + high) // 2
        if count(keep(middle)) <= room:
            low = middle
        else:
            high = middle
    return (None, 0) if low < 0 else (keep(low), total - low)


def _words(text: str) -> list[str]:
    """Split a text into words with the space before them; 16 characters without one count as a word."""
    return re.findall(r" ?\S{1,16}", " ".join(text.split()))


def _first_words(items: tuple[str, ...], words: int) -> tuple[str, ...]:
    kept: list[str] = []
    for item in items:
        parts = _words(item)
        if words <= 0:
            break
        kept.append(item if len(parts) <= words else "".join(parts[:words]))
        words -= len(parts)
    return tuple(kept)
