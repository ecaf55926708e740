"""Texts to vectors: the encoders, and the vectors of users built from the vectors of their items.

An `Encoder` is anything with a name, a fingerprint, a number of dimensions and `embed`. Knows no task: which text an
item has is a function that the caller hands in.

Example:
    >>> encoder = load_encoder("tiny-random", device=torch.device("cpu"))
    >>> embed_users(encoder, users, lambda item: item.get("description")).shape  # 5 users
    torch.Size([5, 256])
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mta.characters import whole_characters
from mta.encoder_files import encoder_fingerprint, require_safe_weights, require_tokenizer_parser
from mta.errors import ConfigError, DataError, ModelError
from mta.files import sha256_json, storage_errors
from mta.hub import model_folder
from mta.models import BASE_MODELS, ENCODERS, find_package_file
from mta.records import HistoryItem, User
from mta.runtime import quiet_loading
from mta.vector_cache import VectorCache, vector_key

MAX_TOKENS = 512
TOKENS_PER_BATCH = 8192
TEXTS_PER_CHUNK = 1024
SENTENCE_BATCH = 32


class Encoder(Protocol):
    """What turns texts into vectors."""

    @property
    def name(self) -> str:
        """Short name, hub id or path it was loaded by."""

    @property
    def fingerprint(self) -> str:
        """Content id: equal for equal weights and settings, wherever they lie."""

    @property
    def dimensions(self) -> int:
        """D, the length of a vector."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return (N, D) float32 on the CPU, one row per text, in order."""


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the vectors of the real tokens of each text, leaving out the padding.

    Args:
        hidden: (N, T, D) last hidden states.
        mask: (N, T), 1 at real tokens and 0 at padding.

    Returns:
        (N, D); a text without tokens gets zeros.
    """
    real = mask.unsqueeze(-1).to(hidden.dtype)  # (N, T, 1)
    kept = hidden.masked_fill(real == 0, 0.0)  # padding may hold anything, even NaN
    return kept.sum(dim=1) / real.sum(dim=1).clamp(min=1)


@dataclass(frozen=True, slots=True)
class HashingEncoder:
    """Counts of hashed words with hashed signs, scaled to length 1; needs no weights and has no window.

    Texts that share words are similar. A text without a word gets zeros.
    """

    name: str = "tiny-random"
    dimensions: int = 256
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """Content id made of the settings."""
        return sha256_json(["hashing", self.dimensions, self.seed])

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return (N, D) float32, one row per text."""
        vectors = torch.zeros(len(texts), self.dimensions)
        for row, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                place, sign = self._place(word)
                row[place] += sign
        return torch.nn.functional.normalize(vectors, dim=-1)

    def _place(self, word: str) -> tuple[int, int]:
        key = self.seed.to_bytes(8, "little", signed=True)
        number = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), key=key, digest_size=8).digest())
        return (number >> 1) % self.dimensions, 1 if number & 1 else -1


@dataclass(frozen=True, slots=True, eq=False)
class SentenceEncoder:
    """A sentence-transformers model, with its own pooling, window and scaling."""

    name: str
    fingerprint: str
    dimensions: int
    model: Any = field(repr=False)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return (N, D) float32 on the CPU, one row per text."""
        if not texts:
            return torch.zeros(0, self.dimensions)
        vectors: Tensor = self.model.encode(
            list(texts), batch_size=SENTENCE_BATCH, show_progress_bar=False, convert_to_tensor=True
        )
        return vectors.float().cpu().clone()  # out of inference mode


@dataclass(frozen=True, slots=True, eq=False)
class MaskedMeanEncoder:
    """A plain transformer: the mean of the last hidden states of a text's tokens, special tokens included."""

    name: str
    fingerprint: str
    dimensions: int
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    max_tokens: int = MAX_TOKENS
    """Tokens read of a text; the rest is cut off."""

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return (N, D) float32 on the CPU, one row per text."""
        vectors = torch.zeros(len(texts), self.dimensions)
        if not texts:
            return vectors
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)
        lengths = [len(ids) for ids in rows["input_ids"]]
        for batch in length_batches(lengths, TOKENS_PER_BATCH):
            part = {key: [values[i] for i in batch] for key, values in rows.items()}
            inputs = self.tokenizer.pad(part, return_tensors="pt").to(self.model.device)
            hidden = self.model(**inputs).last_hidden_state.float()  # (N, T, D)
            vectors[batch] = masked_mean(hidden, inputs["attention_mask"]).cpu()
        return vectors


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest texts first, each at most `tokens_per_batch` padded tokens (or one text).

    Texts of length 0 are in no batch.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        size = max(1, tokens_per_batch // lengths[order[start]])
        yield order[start : start + size]
        start += size


# ---------------------------------------------------------------------------------------------- loading


def load_encoder(name: str, *, device: torch.device) -> Encoder:
    """Load an encoder: a sentence-transformers model where the folder is one, else a masked mean of the last layer.

    Args:
        name: a short name from `mta models`, a hub id, or the path of a model folder.
        device: where it computes; the vectors always come back on the CPU.

    Raises:
        ModelError: it is not there, cannot be reached, has pickle weights only, or does not load.

    Example:
        >>> load_encoder("tiny-random", device=torch.device("cpu")).dimensions
        256
    """
    entry = ENCODERS.get(name)
    if entry is None and name in BASE_MODELS:
        raise ModelError(f"{name} is a base model, not an encoder; encoders: {', '.join(sorted(ENCODERS))}")
    if entry is not None and entry.source == "code":
        return HashingEncoder(name=name)
    if entry is not None and entry.package is not None:
        return encoder_from_folder(find_package_file(entry), name=name, device=device)
    hub_id = entry.hub_id if entry is not None and entry.hub_id is not None else name
    return encoder_from_folder(model_folder(hub_id, known=ENCODERS), name=name, device=device)


def encoder_from_folder(folder: Path, *, name: str, device: torch.device) -> Encoder:
    """Load the encoder in `folder`, choosing its kind by whether there is a modules.json.

    Raises:
        ModelError: it has no safetensors weights, or does not load.
    """
    with storage_errors(folder, "read"):
        load = _load_sentence_encoder if (folder / "modules.json").is_file() else _load_masked_mean_encoder
        require_safe_weights(folder, name)
    try:
        with quiet_loading():
            return load(folder, name, device)
    except (ModelError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the libraries raise whatever their parsers do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"encoder {name} does not load from {folder}: {type(error).__name__}: {reason}; check that the folder is "
            "a complete text encoder, or fetch it again"
        ) from error


def _load_sentence_encoder(folder: Path, name: str, device: torch.device) -> Encoder:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder),
        device=str(device),
        local_files_only=True,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
    )
    model.eval()
    vector = model.encode("probe", show_progress_bar=False, convert_to_tensor=True)
    return SentenceEncoder(name, encoder_fingerprint(folder, "sentence"), vector.shape[-1], model)


def _load_masked_mean_encoder(folder: Path, name: str, device: torch.device) -> Encoder:
    from transformers import AutoModel, AutoTokenizer

    require_tokenizer_parser(folder, name)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model, report = AutoModel.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    _require_trained(report["missing_keys"], name)
    model.eval().requires_grad_(False).to(device)
    window = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS
    max_tokens = min(MAX_TOKENS, window, tokenizer.model_max_length)
    fingerprint = encoder_fingerprint(folder, f"masked_mean:{max_tokens}")
    dimensions = model.config.hidden_size
    encoder = MaskedMeanEncoder(name, fingerprint, dimensions, model, tokenizer, max_tokens)
    encoder.embed(["probe"])  # an architecture that needs more than tokens fails here, not in the middle of a run
    return encoder


def _require_trained(missing: Sequence[str], name: str) -> None:
    """Refuse weights that do not fill the model: transformers would start the rest at random."""
    lacking = sorted(key for key in missing if "pooler" not in key)
    if lacking:
        raise ModelError(
            f"encoder {name}: its file lacks {len(lacking)} weights the model needs, for example {lacking[0]}; "
            "they would be random - fetch the model again, or choose one whose config fits its weights"
        )


# ------------------------------------------------------------------------------------------- embedding


def embed_cached(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    cache: VectorCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Embed texts, each distinct one once, and remember the vectors for the next time.

    New vectors are stored as they come, so a killed run continues where it was.

    Args:
        encoder: the encoder.
        texts: N texts.
        cache: where vectors are kept between runs; None keeps none.
        on_progress: called with (distinct texts done, distinct texts in all).

    Returns:
        (N, D) float32.

    Raises:
        ModelError: the encoder gave vectors of the wrong shape, or not finite.
        StorageError: the cache cannot be used.
    """
    distinct, rows = _distinct(texts)
    return _embed_distinct(encoder, distinct, cache, on_progress)[rows]


def embed_users(
    encoder: Encoder,
    users: Sequence[User],
    item_text: Callable[[HistoryItem], str],
    *,
    cache: VectorCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Turn each user into the mean of the vectors of the user's history items.

    Source: MTA Eq. 2   E_u = 1 / |H_u| * sum_{h_i in H_u} Encoder(h_i)

    Args:
        encoder: the encoder.
        users: U users, each with at least one history item.
        item_text: the text of one item.
        cache: where item vectors are kept between runs; None keeps none.
        on_progress: called with (distinct texts done, distinct texts in all).

    Returns:
        (U, D) float32.

    Raises:
        DataError: a user has no history.
        ModelError: the encoder gave vectors of the wrong shape, or not finite.
    """
    _require_histories(users)
    distinct, rows = _distinct([item_text(item) for user in users for item in user.history])
    vectors = _embed_distinct(encoder, distinct, cache, on_progress)
    result = torch.zeros(len(users), encoder.dimensions)
    start = 0
    for index, user in enumerate(users):
        items = vectors[rows[start : start + len(user.history)]]  # (items, D)
        result[index] = items.double().mean(dim=0)
        start += len(user.history)
    return result


def document_vectors(
    encoder: Encoder,
    users: Sequence[User],
    document_text: Callable[[HistoryItem], str],
    *,
    document: str = "item_mean",
    cache: VectorCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Turn each user into the vector that is compared with the anchors' vectors.

    Args:
        encoder: the encoder.
        users: U users, each with at least one history item.
        document_text: an item's part of the document.
        document: "item_mean" averages the items' vectors; "first512" embeds all items' texts joined by a space, of
            which the encoder reads only its first window.
        cache: where vectors are kept between runs; None keeps none.
        on_progress: called with (distinct texts done, distinct texts in all).

    Returns:
        (U, D) float32.

    Raises:
        ConfigError: `document` is neither of the two.
        DataError: a user has no history.
    """
    if document == "item_mean":
        return embed_users(encoder, users, document_text, cache=cache, on_progress=on_progress)
    if document != "first512":
        raise ConfigError(f"document is {document!r}; choose item_mean or first512")
    _require_histories(users)
    documents = [" ".join(document_text(item) for item in user.history) for user in users]
    return embed_cached(encoder, documents, cache=cache, on_progress=on_progress)


def _require_histories(users: Sequence[User]) -> None:
    empty = [user.user_id for user in users if not user.history]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise DataError(
            f"user {empty[0]!r}{more} has no history items, so there is nothing to embed; leave out users without a "
            "history, or add items"
        )


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the distinct texts in order of first appearance, and for each text its row among them."""
    places: dict[str, int] = {}
    rows = [places.setdefault(whole_characters(text), len(places)) for text in texts]
    return list(places), rows


def _embed_distinct(
    encoder: Encoder,
    texts: Sequence[str],
    cache: VectorCache | None,
    on_progress: Callable[[int, int], None] | None,
) -> Tensor:
    vectors = torch.zeros(len(texts), encoder.dimensions)
    keys = [vector_key(encoder.fingerprint, text) for text in texts]
    known = cache.read(keys, dimensions=encoder.dimensions) if cache is not None else {}
    for index, key in enumerate(keys):
        if key in known:
            vectors[index] = known[key]
    missing = sorted((i for i, key in enumerate(keys) if key not in known), key=lambda i: -len(texts[i]))
    for start in range(0, len(missing), TEXTS_PER_CHUNK):
        part = missing[start : start + TEXTS_PER_CHUNK]
        vectors[part] = _checked(encoder, encoder.embed([texts[i] for i in part]), len(part))
        if cache is not None:
            cache.write({keys[i]: vectors[i] for i in part})
        if on_progress is not None:
            on_progress(len(texts) - len(missing) + start + len(part), len(texts))
    return vectors


def _checked(encoder: Encoder, vectors: Tensor, count: int) -> Tensor:
    if vectors.shape != (count, encoder.dimensions):
        raise ModelError(
            f"encoder {encoder.name} gave vectors of shape {tuple(vectors.shape)} for {count} texts; "
            f"wanted {(count, encoder.dimensions)}"
        )
    if not torch.isfinite(vectors).all():
        raise ModelError(f"encoder {encoder.name} gave vectors that are not finite; its weights may be damaged")
    return vectors
