"""The frozen language model: load it from a short name, a hub id or a path, and know it again by fingerprint.

Example:
    >>> base = load_base_model("tiny-random")
    >>> base.shapes(("q_proj", "v_proj"))["model.layers.0.self_attn.q_proj"]
    (32, 32)
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from mta.errors import ModelError
from mta.files import PICKLE_SUFFIXES, expand_home, is_there, make_folder, sha256_file, sha256_json, storage_errors
from mta.lora.attach import linear_shapes
from mta.models import BASE_MODELS, ModelName, find_package_file, join_package_parts
from mta.prompt_tokens import PromptTokenizer
from mta.row_attention import check_rows_stay_apart
from mta.runtime import cache_folder, choose_device, choose_dtype, quiet_loading
from mta.tiny_model import byte_tokenizer, tiny_llama

log = logging.getLogger(__name__)

SAMPLES_PER_TENSOR = 64


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen decoder with its tokenizer."""

    name: str
    """What the user asked for: a short name, hub id or path."""
    model: Any
    tokens: PromptTokenizer
    fingerprint: str
    """Identifies weights and architecture; equal across dtypes and machines (see `model_fingerprint`)."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a generated answer: the tokenizer's, and those the model was released with."""
        ends: list[int] = self.model.generation_config.eos_token_id
        return ends

    @property
    def pad_id(self) -> int:
        """Token used for padding; it is always masked."""
        tokenizer = self.tokens.tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def shapes(self, target_modules: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return the target linears as module name -> (d_out, d_in)."""
        return linear_shapes(self.model, target_modules)


def load_base_model(name: str, *, device: str = "auto", dtype: str = "auto") -> BaseModel:
    """Load a base model, frozen and in evaluation mode.

    Args:
        name: a short name (`mta models`), a hub id, or a folder or .gguf file.
        device: "auto", "cpu", "cuda" or "cuda:1".
        dtype: "auto" (float32 on the CPU, bfloat16 on a GPU), "float32", "bfloat16" or "float64".

    Raises:
        ModelError: it is not there, has only pickle weights, or has no linear projections.
    """
    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    model, tokenizer = _load(name, kind)
    return wrap_model(model.to(where), tokenizer, name=name)


def load_base_shape(name: str, *, device: str = "auto", dtype: str = "auto") -> BaseModel:
    """Load a base model's tokenizer and architecture, with weights that have shapes and no values.

    It takes no memory and serves to plan: it has prompts, shapes and passes, but no answers and no fingerprint.
    Arguments and errors as for `load_base_model`.
    """
    from transformers import AutoConfig, AutoTokenizer

    where = choose_device(device)
    entry = BASE_MODELS.get(name)
    if entry is not None and entry.source == "code":
        config, tokenizer = tiny_llama().config, byte_tokenizer()
    else:
        source = _source(name)
        with _loading(source):
            config, tokenizer = AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    return base_shape(config, tokenizer, name=name, device=where, dtype=choose_dtype(dtype, where))


def base_shape(config: Any, tokenizer: Any, *, name: str, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """Make a base model of an architecture whose weights have shapes and no values; see `load_base_shape`."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    with _loading(name), FakeTensorMode(), torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.requires_grad_(False)
    model.eval()
    return BaseModel(name, model, PromptTokenizer(tokenizer, context=_context(config)), "")


def wrap_model(model: nn.Module, tokenizer: Any, *, name: str) -> BaseModel:
    """Make a BaseModel of a loaded decoder and tokenizer; freezes the model in place.

    Raises:
        ModelError: users could not share its batches, or nothing says with which token an answer ends.
    """
    model.requires_grad_(False)
    model.eval()
    check_rows_stay_apart(model)
    tokens = PromptTokenizer(tokenizer, context=_context(model.config))
    _make_greedy(model, tokens)
    return BaseModel(name, model, tokens, model_fingerprint(model))


def _context(config: Any) -> int:
    """Return how many tokens a model of this configuration takes."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 2048))


def _make_greedy(model: Any, tokens: PromptTokenizer) -> None:
    """Drop the model's own taste in generation (sampling, penalties), not the tokens it was taught to end with."""
    own = model.generation_config.eos_token_id
    ends = {tokens.end_id, *(own if isinstance(own, list) else [own])} - {None}
    if not all(isinstance(end, int) for end in ends):
        raise ModelError(
            f"generation_config.json ends answers with {own!r}; wanted ids of tokens - fetch the model again"
        )
    model.generation_config = GenerationConfig(do_sample=False, num_beams=1, eos_token_id=sorted(ends))


def _load(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    entry = BASE_MODELS.get(name)
    if entry is not None and entry.source == "code":
        return tiny_llama().to(dtype), byte_tokenizer()
    return _load_folder(_source(name), dtype)


def _source(name: str) -> str:
    """Return the folder or hub id that a name stands for; GGUF files are converted first."""
    entry = BASE_MODELS.get(name)
    if entry is None:
        return _path_or_hub_id(name)
    return str(_converted_package(entry)) if entry.source == "package" else str(entry.hub_id)


def _path_or_hub_id(name: str) -> str:
    path = expand_home(name)
    found = bool(name) and is_there(path)
    if found and path.suffix == ".gguf" and path.is_file():
        return str(_converted(path, sha256_file(path)))
    if path.suffix in PICKLE_SUFFIXES:
        raise ModelError(f"{name} is a pickle file, which can run code when it is opened; {_SAFETENSORS_WAY_OUT}")
    if found and path.is_dir():
        _check_folder(path)
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        known = ", ".join(BASE_MODELS)
        raise ModelError(f"no base model {name!r}: not a folder, not a short name ({known}), not a hub id (owner/name)")
    return name


_SAFETENSORS_WAY_OUT = (
    "only safetensors and GGUF are loaded - convert it with transformers' save_pretrained on a machine you trust"
)


def _check_folder(path: Path) -> None:
    with storage_errors(path, "read"):
        names = [entry.name for entry in path.iterdir()]
    if any(name.endswith(".safetensors") for name in names):
        return
    if any(name.endswith(PICKLE_SUFFIXES) for name in names):
        raise ModelError(f"{path} holds only pickle weights ({', '.join(sorted(names)[:5])}); {_SAFETENSORS_WAY_OUT}")
    raise ModelError(f"{path} holds no model.safetensors; found {', '.join(sorted(names)[:5]) or 'nothing'}")


def _load_folder(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    with _loading(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    if lacking := sorted(report["missing_keys"]):
        raise ModelError(
            f"base model {source}: its files lack {len(lacking)} weights the model needs, for example {lacking[0]}; "
            "they would be random - fetch the model again, or choose one whose config fits its weights"
        )
    return model, tokenizer


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Turn whatever the libraries' parsers raise inside the block into a ModelError that names the source."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load base model {source}: {reason}; check the name and the network, download it first and "
            "give the folder, or use smollm2-135m"
        ) from error


def _converted_package(entry: ModelName) -> Path:
    folder = cache_folder() / "models" / f"{entry.name}-{(entry.sha256 or '')[:16]}"
    if (folder / "config.json").is_file():
        return folder
    path = join_package_parts(entry, folder.parent) if entry.parts else find_package_file(entry)
    digest = sha256_file(path)
    if entry.sha256 and digest != entry.sha256:
        raise ModelError(f"{path} is not the file the table names (sha256 differs); install it again: {entry.install}")
    return _converted(path, digest, folder)


def _converted(gguf: Path, digest: str, folder: Path | None = None) -> Path:
    """Turn a GGUF file into a safetensors folder in the cache, once; later loads take a fraction of a second."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = folder or cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if (folder / "config.json").is_file():
        return folder
    make_folder(folder.parent)
    log.info("converting %s to safetensors (once)", gguf.name)
    with storage_errors(folder, "write"):
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
        try:
            where = {"gguf_file": gguf.name}
            with _loading(str(gguf)), quiet_loading():
                tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
                model = AutoModelForCausalLM.from_pretrained(
                    str(gguf.parent), dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
                )
            with quiet_loading():
                model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            if not folder.exists():  # another process may have been quicker
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


COMPUTES_WITH = (
    "model_type", "hidden_act", "hidden_activation", "rms_norm_eps", "num_attention_heads", "num_key_value_heads",
    "head_dim", "rope_parameters", "layer_types", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip
"""Settings of a decoder that change what equal weights compute."""


@torch.no_grad()
def model_fingerprint(model: Any) -> str:
    """Return a SHA-256 over a decoder's architecture and its weights.

    It reads the settings that change what the weights compute, all parameter names and shapes, and a sample of values
    rounded to bfloat16.
    The rounding makes a model's float32 and bfloat16 copies equal; the sample makes it quick. It tells models and
    fine-tunes apart, it is no proof against a forger.
    """
    config = model.config.get_text_config()
    digest = hashlib.sha256(sha256_json({name: getattr(config, name, None) for name in COMPUTES_WITH}).encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        stride = max(1, flat.numel() // SAMPLES_PER_TENSOR)
        sample = flat[::stride][:SAMPLES_PER_TENSOR].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
