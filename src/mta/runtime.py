"""What this machine offers: device, number format, cache folder, versions.

Knows nothing of models or users.

Example:
    >>> device = choose_device("auto")
    >>> choose_dtype("auto", device)  # on a machine without a GPU
    torch.float32
"""

from __future__ import annotations

import os
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from unittest import mock

import torch

from mta.errors import ConfigError
from mta.files import expand_home

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
VERSIONED = (
    "mta",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "sentence-transformers",
    "scikit-learn",
    "numpy",
    "bm25s",
)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device to compute on.

    Args:
        name: "auto" (a CUDA device where there is one, else the CPU), "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: the name is unknown, or names a device this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise ConfigError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:NUMBER")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        raise ConfigError(
            f"device {name!r} was asked for, but torch sees {count} CUDA devices; use cpu or auto, "
            "or install a torch build with CUDA and check the driver"
        )
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format of the base model's weights.

    Args:
        name: "auto" (float32 on the CPU, bfloat16 on CUDA), "float32", "bfloat16" or "float64".
        device: where the weights will live; decides what "auto" means.

    Raises:
        ConfigError: the name is none of these.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; choose one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def limit_threads(count: int) -> None:
    """Let torch use at most `count` CPU threads in this process.

    Raises:
        ConfigError: the count is below 1.
    """
    if count < 1:
        raise ConfigError(f"threads is {count}; it must be 1 or more")
    torch.set_num_threads(count)


def cache_folder() -> Path:
    """Return the folder for files that can be made again: $MTA_CACHE, $XDG_CACHE_HOME/mta or ~/.cache/mta.

    The folder is not created.
    """
    own = os.environ.get("MTA_CACHE", "")
    if own:
        folder = expand_home(own)
        if own.startswith("~") and folder == Path(own):
            raise ConfigError(f"MTA_CACHE is {own!r}, and there is no such home folder; set it to a whole path")
        return folder.absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the XDG rules say to ignore relative ones
        return Path(shared) / "mta"
    try:
        return Path.home() / ".cache" / "mta"
    except RuntimeError as error:
        raise ConfigError("this user has no home folder to keep a cache in; set MTA_CACHE to a folder") from error


def versions() -> dict[str, str | None]:
    """Return the versions that can change a result, for the config saved beside it; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def is_offline() -> bool:
    """Say whether the environment forbids network access to the hub (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    values = (os.environ.get(name, "").lower() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value in ("1", "true", "yes", "on") for value in values)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence the model libraries' progress bars and remarks inside the block, then put their settings back."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars, hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    # the conversion of GGUF files draws a bar that no setting switches off
    with warnings.catch_warnings(), mock.patch.object(gguf, "tqdm", lambda items, **_: items, create=True):
        warnings.simplefilter("ignore")  # both libraries remark on settings that the environment has fixed
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()  # switches the hub's bars on as well
            if bars and not hub_bars:
                disable_progress_bars()
