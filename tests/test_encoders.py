"""Encoders: pooling, hashing, loading, caching, and the vectors of users."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from mta.encoder_files import encoder_fingerprint
from mta.encoders import (
    Encoder,
    HashingEncoder,
    MaskedMeanEncoder,
    SentenceEncoder,
    document_vectors,
    embed_cached,
    embed_users,
    length_batches,
    load_encoder,
    masked_mean,
)
from mta.errors import ConfigError, DataError, ModelError, MtaError
from mta.files import write_json
from mta.records import HistoryItem, User
from mta.vector_cache import VectorCache, vector_key
from permissions import permissions_count

CPU = torch.device("cpu")
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "far", "home", "old", "new")


@dataclass
class CountingEncoder:
    """A fake that writes down what it was asked: a text's vector is (length, number of a's)."""

    name: str = "counting"
    fingerprint: str = "counting-1"
    dimensions: int = 2
    asked: list[str] = field(default_factory=list)

    def embed(self, texts: Sequence[str]) -> Tensor:
        self.asked.extend(texts)
        return torch.tensor([[float(len(text)), float(text.count("a"))] for text in texts]).reshape(-1, 2)


def user(user_id: str, *texts: str) -> User:
    return User(user_id, tuple(HistoryItem(f"{user_id}-{i}", {"text": text}) for i, text in enumerate(texts)))


def text_of(item: HistoryItem) -> str:
    return item.get("text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, tiny, random BERT with a tokenizer of whole words, window 16."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("tiny-bert")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = {name: number for number, name in enumerate(names)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=1000).save_pretrained(path)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT to change."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


@pytest.fixture
def sentence_folder(folder: Path, tmp_path: Path) -> Path:
    """The tiny BERT as a sentence-transformers folder: first-token pooling, a dense layer to width 4, unit length."""
    path = Path(shutil.copytree(folder, tmp_path / "sentence"))
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": part, "type": f"sentence_transformers.models.{kind}"}
        for index, (part, kind) in enumerate(kinds)
    ]
    write_json(path / "modules.json", modules)
    write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": 8, "pooling_mode_cls_token": True})
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": 8, "out_features": 4, "bias": False, "activation_function": identity}
    write_json(path / "2_Dense" / "config.json", dense)
    save_file({"linear.weight": torch.eye(8)[:4].contiguous()}, path / "2_Dense" / "model.safetensors")
    return path


# ------------------------------------------------------------------------------------------- pooling


def test_masked_mean_by_hand_leaves_padding_out() -> None:
    hidden = torch.tensor(
        [
            [[1.0, 2.0], [3.0, 6.0], [100.0, -100.0]],
            [[4.0, 4.0], [7.0, 7.0], [1.0, 1.0]],
            [[9.0, 9.0], [float("nan"), float("inf")], [5.0, 5.0]],
        ]
    )
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    wanted = torch.tensor([[2.0, 4.0], [4.0, 4.0], [0.0, 0.0]])
    assert torch.equal(masked_mean(hidden, mask), wanted)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6))
def test_masked_mean_does_not_change_with_more_padding(seed: int, rows: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, tokens, 3, generator=generator, dtype=torch.float64)
    mask = torch.randint(0, 2, (rows, tokens), generator=generator)
    longer = torch.cat([hidden, torch.full((rows, 2, 3), 9.0)], dim=1)
    wider = torch.cat([mask, torch.zeros(rows, 2, dtype=mask.dtype)], dim=1)
    torch.testing.assert_close(masked_mean(longer, wider), masked_mean(hidden, mask), rtol=0, atol=1e-12)
    slow = [[h for h, m in zip(hs, ms, strict=True) if m] for hs, ms in zip(hidden, mask, strict=True)]
    for got, kept in zip(masked_mean(hidden, mask), slow, strict=True):
        want = sum(kept, torch.zeros(3, dtype=torch.float64)) / max(1, len(kept))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_length_batches_cover_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == [i for i, length in enumerate(lengths) if length]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


# ------------------------------------------------------------------------------------------- hashing


def test_hashing_is_a_signed_count_of_unit_length() -> None:
    encoder = HashingEncoder(dimensions=1024)
    cat, twice, both = encoder.embed(["cat", "Cat, cat!", "cat dog"])
    assert int((cat != 0).sum()) == 1
    assert cat.abs().max() == 1
    assert torch.equal(cat, twice)  # case and count do not matter for one word
    assert both @ cat == pytest.approx(2**-0.5)
    dog = encoder.embed(["dog"])[0]
    torch.testing.assert_close(both, (cat + dog) / 2**0.5)


def test_hashing_uses_both_signs_and_spreads_over_the_dimensions() -> None:
    vectors = HashingEncoder(dimensions=64).embed([f"word{i}" for i in range(2000)])
    positive = int((vectors > 0).sum())
    assert 850 < positive < 1150
    per_place = (vectors != 0).sum(dim=0)
    assert per_place.min() > 10
    assert per_place.max() < 60


def test_hashing_text_without_words_gives_zeros_and_seeds_differ() -> None:
    encoder = HashingEncoder()
    assert torch.equal(encoder.embed(["", " .!? "]), torch.zeros(2, 256))
    assert encoder.embed([]).shape == (0, 256)
    other = HashingEncoder(seed=1)
    assert not torch.equal(other.embed(["some words here"]), encoder.embed(["some words here"]))
    assert len({encoder.fingerprint, other.fingerprint, HashingEncoder(dimensions=128).fingerprint}) == 3


def test_hashing_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "from mta.encoders import HashingEncoder;"
        "print(HashingEncoder(dimensions=16).embed(['one two three four'])[0].tolist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # this process has another one, most likely a random one
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout == f"{HashingEncoder(dimensions=16).embed(['one two three four'])[0].tolist()}\n"


# ------------------------------------------------------------------------------------------- loading


def test_the_short_name_tiny_random_needs_no_files() -> None:
    encoder = load_encoder("tiny-random", device=CPU)
    assert (encoder.name, encoder.dimensions) == ("tiny-random", 256)


def test_a_plain_transformer_folder_becomes_a_masked_mean(folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = load_encoder(str(folder), device=CPU)
    assert isinstance(encoder, MaskedMeanEncoder)
    assert (encoder.dimensions, encoder.max_tokens) == (8, 16)
    texts = ["the cat sat", "a", "", "the old dog ran far home"]
    got = encoder.embed(texts)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(texts, got, strict=True):  # one by one, no padding, plain mean
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(vector, alone, rtol=0, atol=1e-5)
    assert not got.is_inference()
    assert encoder.embed([]).shape == (0, 8)


def test_the_batch_a_text_is_in_does_not_change_its_vector(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(folder), device=CPU)
    texts = [" ".join(WORDS[i % 10] for i in range(n)) for n in (1, 9, 3, 12, 2, 7)]
    together = encoder.embed(texts)
    monkeypatch.setattr("mta.encoders.TOKENS_PER_BATCH", 20)
    torch.testing.assert_close(encoder.embed(texts), together, rtol=0, atol=1e-5)


def test_only_the_window_of_a_long_text_is_read(folder: Path) -> None:
    encoder = load_encoder(str(folder), device=CPU)
    inside = " ".join(["cat"] * 14)  # 14 words and two special tokens fill the window of 16
    same, beyond, short = encoder.embed([inside, inside + " dog dog dog", "cat"])
    assert torch.equal(same, beyond)
    assert not torch.allclose(same, short, atol=1e-4)


def test_a_folder_with_modules_json_becomes_a_sentence_encoder(folder: Path, sentence_folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = load_encoder(str(sentence_folder), device=CPU)
    assert isinstance(encoder, SentenceEncoder)
    vectors = encoder.embed(["the cat"])
    inputs = AutoTokenizer.from_pretrained(folder)("the cat", return_tensors="pt")
    with torch.no_grad():
        first = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0, 0, :4]
    torch.testing.assert_close(vectors[0], first / first.norm(), rtol=0, atol=1e-5)
    assert encoder.dimensions == 4
    assert vectors.dtype == torch.float32
    assert not vectors.is_inference()
    assert encoder.embed([]).shape == (0, 4)
    assert encoder.fingerprint != load_encoder(str(folder), device=CPU).fingerprint


@pytest.mark.parametrize("kind", ["plain", "sentence"])
def test_loading_and_embedding_say_nothing(
    kind: str, folder: Path, sentence_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_encoder(str(folder if kind == "plain" else sentence_folder), device=CPU).embed(["the cat"])
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_follows_the_content_not_the_place(folder: Path, own: Path) -> None:
    assert encoder_fingerprint(own, "s") == encoder_fingerprint(folder, "s")
    assert encoder_fingerprint(own, "t") != encoder_fingerprint(folder, "s")
    weights = own / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert encoder_fingerprint(own, "s") != encoder_fingerprint(folder, "s")


def test_weights_other_than_safetensors_are_refused(own: Path) -> None:
    (own / "model.safetensors").rename(own / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safetensors"):
        load_encoder(str(own), device=CPU)


def test_pickle_weights_of_an_inner_module_are_refused(sentence_folder: Path) -> None:
    dense = sentence_folder / "2_Dense"
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle weights"):
        load_encoder(str(sentence_folder), device=CPU)


def test_damaged_weights_are_a_model_error(own: Path) -> None:
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelError, match="does not load"):
        load_encoder(str(own), device=CPU)


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400])
def test_a_folder_that_may_not_be_read_is_named(own: Path, mode: int) -> None:
    for locked in (own, own.parent)[: 1 if mode == 0o100 else 2]:  # what is below may be read with that one
        locked.chmod(mode)
        try:
            with (
                permissions_count(),
                pytest.raises(MtaError, match=r"Permission denied|no \*\.safetensors|does not load"),
            ):
                load_encoder(str(own), device=CPU)
        finally:
            locked.chmod(0o700)


@pytest.mark.parametrize("path", ["x" * 300, "/etc", "a\0b", "\ud800", 5, None])
def test_modules_that_lead_nowhere_are_an_error_of_ours(own: Path, path: object) -> None:
    (own / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": path}]))
    with pytest.raises(MtaError):
        load_encoder(str(own), device=CPU)


def test_weights_that_do_not_fill_the_model_are_refused(own: Path) -> None:
    tensors = load_file(own / "model.safetensors")
    lacking = {key: value for key, value in tensors.items() if "layer.1." not in key}
    save_file(lacking, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks \d+ weights.*would be random"):
        load_encoder(str(own), device=CPU)


def test_a_missing_sentencepiece_parser_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "tokenizer.json").unlink()
    (own / "spm.model").write_bytes(b"")
    monkeypatch.setattr("mta.encoder_files._is_installed", lambda package: package != "sentencepiece")
    with pytest.raises(ModelError, match="pip install sentencepiece protobuf"):
        load_encoder(str(own), device=CPU)


def test_a_base_model_name_is_not_an_encoder() -> None:
    with pytest.raises(ModelError, match=r"smollm2-135m is a base model.*bge-small"):
        load_encoder("smollm2-135m", device=CPU)


def test_a_hub_encoder_that_is_not_cached_is_told_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"nobody/no-such-encoder is not on this machine.*minilm"):
        load_encoder("nobody/no-such-encoder", device=CPU)


# ------------------------------------------------------------------------------------------- caching


def test_each_distinct_text_is_embedded_once_and_rows_keep_their_order() -> None:
    encoder = CountingEncoder()
    vectors = embed_cached(encoder, ["aab", "c", "aab", "", "c"])
    assert vectors.tolist() == [[3, 2], [1, 0], [3, 2], [0, 0], [1, 0]]
    assert sorted(encoder.asked) == ["", "aab", "c"]


def test_a_second_run_asks_only_for_new_texts(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "vectors.sqlite")
    first = embed_cached(CountingEncoder(), ["aab", "c"], cache=cache)
    again = CountingEncoder()
    vectors = embed_cached(again, ["c", "new", "aab"], cache=cache)
    assert again.asked == ["new"]
    assert torch.equal(vectors[[2, 0]], first)
    other = CountingEncoder(fingerprint="counting-2")
    embed_cached(other, ["c"], cache=cache)
    assert other.asked == ["c"]  # another encoder shares nothing


def test_a_damaged_entry_is_computed_again_and_repaired(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "vectors.sqlite")
    embed_cached(CountingEncoder(), ["aab", "c"], cache=cache)
    key = vector_key("counting-1", "aab")
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE vectors SET vector = ? WHERE key = ?", (b"\x00" * 8, key))
    encoder = CountingEncoder()
    assert embed_cached(encoder, ["aab", "c"], cache=cache).tolist() == [[3, 2], [1, 0]]
    assert encoder.asked == ["aab"]
    assert cache.read([key], dimensions=2)[key].tolist() == [3, 2]


def test_a_run_that_dies_keeps_the_chunks_it_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta.encoders.TEXTS_PER_CHUNK", 2)
    cache = VectorCache(tmp_path / "vectors.sqlite")

    class Dying(CountingEncoder):
        def embed(self, texts: Sequence[str]) -> Tensor:
            if len(self.asked) >= 4:
                raise KeyboardInterrupt
            return super().embed(texts)

    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    with pytest.raises(KeyboardInterrupt):
        embed_cached(Dying(), texts, cache=cache)
    encoder = CountingEncoder()
    seen: list[tuple[int, int]] = []
    embed_cached(encoder, texts, cache=cache, on_progress=lambda done, total: seen.append((done, total)))
    assert encoder.asked == ["a"]  # longest first, so the shortest is what was left
    assert seen == [(5, 5)]


def test_broken_vectors_are_refused_and_not_stored(tmp_path: Path) -> None:
    class Broken(CountingEncoder):
        def embed(self, texts: Sequence[str]) -> Tensor:
            return torch.full((len(texts), 2), float("nan"))

    cache = VectorCache(tmp_path / "vectors.sqlite")
    with pytest.raises(ModelError, match="not finite"):
        embed_cached(Broken(), ["a"], cache=cache)
    with pytest.raises(ModelError, match=r"shape \(1, 2\) for 1 texts; wanted \(1, 3\)"):
        embed_cached(CountingEncoder(dimensions=3), ["a"], cache=cache)
    assert cache.read([vector_key("counting-1", "a")], dimensions=2) == {}


def test_lone_surrogates_are_replaced_before_the_encoder_sees_them(folder: Path, tmp_path: Path) -> None:
    encoder = CountingEncoder()
    embed_cached(encoder, ["a\ud800b", "ok 🙂"], cache=VectorCache(tmp_path / "v.sqlite"))
    assert sorted(encoder.asked) == ["a\ufffdb", "ok 🙂"]
    assert embed_cached(load_encoder(str(folder), device=CPU), ["\udc00"]).shape == (1, 8)


# ------------------------------------------------------------------------------------------- users


def test_a_user_is_the_plain_mean_of_the_items_by_hand() -> None:
    users = [user("u", "aab", "c", "c"), user("v", "aaaa")]
    vectors = embed_users(CountingEncoder(), users, text_of)
    torch.testing.assert_close(vectors, torch.tensor([[5 / 3, 2 / 3], [4.0, 4.0]]))
    assert vectors.dtype == torch.float32


def test_items_shared_by_users_are_embedded_once() -> None:
    encoder = CountingEncoder()
    embed_users(encoder, [user("u", "a", "b"), user("v", "b", "a", "c")], text_of)
    assert sorted(encoder.asked) == ["a", "b", "c"]


@settings(deadline=None)
@given(st.permutations(list(range(6))))
def test_the_order_of_items_does_not_matter(order: list[int]) -> None:
    texts = [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(6)]
    encoder = HashingEncoder(dimensions=16)
    straight = embed_users(encoder, [user("u", *texts)], text_of)
    shuffled = embed_users(encoder, [user("u", *(texts[i] for i in order))], text_of)
    torch.testing.assert_close(shuffled, straight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("document", ["item_mean", "first512"])
def test_users_without_a_history_are_named(document: str) -> None:
    users = [user("u", "a"), user("empty"), user("void")]
    with pytest.raises(DataError, match="user 'empty' and 1 more has no history"):
        document_vectors(CountingEncoder(), users, text_of, document=document)


def test_the_two_kinds_of_document() -> None:
    users = [user("u", "aab", "c"), user("v", "a")]
    mean = document_vectors(CountingEncoder(), users, text_of)
    assert torch.equal(mean, embed_users(CountingEncoder(), users, text_of))
    encoder = CountingEncoder()
    joined = document_vectors(encoder, users, text_of, document="first512")
    assert sorted(encoder.asked) == ["a", "aab c"]
    assert joined.tolist() == [[5, 2], [1, 1]]
    with pytest.raises(ConfigError, match="'all'; choose item_mean or first512"):
        document_vectors(encoder, users, text_of, document="all")


def test_first512_reads_only_the_first_window(folder: Path) -> None:
    encoder = load_encoder(str(folder), device=CPU)
    users = [user("u", "cat " * 14, "dog"), user("v", "cat " * 14, "home far")]
    first = document_vectors(encoder, users, text_of, document="first512")
    assert torch.equal(first[0], first[1])
    mean = document_vectors(encoder, users, text_of, document="item_mean")
    assert not torch.allclose(mean[0], mean[1], atol=1e-5)


def test_no_users_give_no_rows() -> None:
    assert embed_users(CountingEncoder(), [], text_of).shape == (0, 2)
    assert document_vectors(CountingEncoder(), [], text_of, document="first512").shape == (0, 2)


# ---------------------------------------------------------------------------------------- real model


@pytest.mark.model
def test_minilm_puts_like_with_like() -> None:
    encoder: Encoder = load_encoder("minilm", device=CPU)
    assert (encoder.name, encoder.dimensions) == ("minilm", 384)
    space = user("space", "Astronauts are stranded on Mars.", "A starship explores a distant galaxy.")
    love = user("love", "Two strangers fall in love in Paris.", "A wedding brings old lovers together.")
    target = user("target", "A crew travels to the moons of Saturn.")
    vectors = document_vectors(encoder, [space, love, target], text_of)
    similar = torch.nn.functional.cosine_similarity(vectors[2:], vectors[:2])
    assert similar[0] > similar[1] + 0.1
    torch.testing.assert_close(vectors[2].norm(), torch.tensor(1.0))
    assert load_encoder("minilm", device=CPU).fingerprint == encoder.fingerprint
