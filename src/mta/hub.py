"""Find the folder of a model: a local path, or a snapshot of a hub repository.

Only safetensors weights and the small text files beside them are fetched; pickle files, which can run code when they
are opened, never are. Without a network, or with HF_HUB_OFFLINE=1, what an earlier fetch left is used.

Example:
    >>> model_folder("BAAI/bge-small-en-v1.5", known=ENCODERS)  # doctest: +SKIP
    PosixPath('.../snapshots/...')
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from mta.errors import ModelError
from mta.files import PICKLE_SUFFIXES, expand_home, is_there
from mta.runtime import is_offline, quiet_loading

WANTED_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
UNWANTED_FILES = ("onnx/*", "openvino/*", "coreml/*", "original/*")
CONVERSION_BOT = "SFconvertbot"

logger = logging.getLogger(__name__)


def model_folder(name: str, *, known: Iterable[str] = ()) -> Path:
    """Return the local folder of the model `name`, fetching it from the hub where it is a hub id.

    Args:
        name: a folder, or a hub id such as "BAAI/bge-small-en-v1.5".
        known: short names to list in the message when `name` leads nowhere.

    Raises:
        ModelError: there is no such folder or repository, it cannot be reached, or it has no safetensors weights.
    """
    path = expand_home(name)
    found = bool(name) and is_there(path)
    if found and path.is_dir():
        return path
    short = f"a short name ({', '.join(sorted(known))}), " if known else ""
    if found:
        raise ModelError(f"{name} is a file; give the folder it is in")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None or name.startswith((".", "/", "~")):
        raise ModelError(
            f"model {name!r}: there is no such folder, and it is no hub id; give {short}a hub id or a path"
        )
    return _snapshot(name, advice=f"give {short}a hub id or the path of a model folder")


def has_safetensors(folder: Path) -> bool:
    """Say whether the folder itself holds safetensors weights."""
    return any(folder.glob("*.safetensors"))


def require_safetensors(folder: Path, name: str) -> None:
    """Refuse a model folder whose weights are missing or are pickle files.

    Raises:
        ModelError: names the files found and the way to safetensors.
    """
    if has_safetensors(folder):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelError(
            f"model {name}: the folder has only pickle weights ({', '.join(pickles[:3])}), which can run code when "
            "opened; wanted safetensors - load it once where you trust it and save it with "
            "save_pretrained(NEW_FOLDER, safe_serialization=True), then give that folder"
        )
    raise ModelError(
        f"model {name}: no *.safetensors weights in the folder; check that the download is complete, or that this is "
        "the folder of the model itself"
    )


def _snapshot(hub_id: str, *, advice: str) -> Path:
    """Fetch the main branch; where it has pickle weights only, fetch the hub's own safetensors conversion of it."""
    folder = _download(hub_id, None, advice)
    if any(folder.rglob("*.safetensors")):
        return folder
    fetched = [other for other in sorted(folder.parent.iterdir()) if has_safetensors(other)]
    if fetched:
        return fetched[0]
    revision = None if is_offline() else _conversion_branch(hub_id)
    if revision is not None:
        folder = _download(hub_id, revision, advice)
        if has_safetensors(folder):
            return folder
    raise ModelError(
        f"model {hub_id} has no safetensors weights on the hub (only pickle files, or other formats); wanted "
        "safetensors - convert it once where you trust it with save_pretrained(FOLDER, safe_serialization=True) and "
        "give that folder"
    )


def _download(hub_id: str, revision: str | None, advice: str) -> Path:
    from huggingface_hub import snapshot_download

    offline = is_offline()
    if not offline:
        logger.info("looking for %s on the hub", hub_id)
    try:
        with quiet_loading():
            folder = snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(WANTED_FILES),
                ignore_patterns=list(UNWANTED_FILES),
                local_files_only=offline,
            )
    except Exception as error:  # the client raises its own, the transport's and the disk's errors
        raise ModelError(_failure(hub_id, error, offline=offline, advice=advice)) from error
    return Path(folder)


def _failure(hub_id: str, error: Exception, *, offline: bool, advice: str) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if offline:
        return (
            f"model {hub_id} is not on this machine and the hub is switched off (HF_HUB_OFFLINE=1); fetch it once "
            f"with the network on, or {advice}"
        )
    if isinstance(error, GatedRepoError):
        return f"model {hub_id} is gated; accept its terms on its hub page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no model {hub_id} that you may see; check the spelling, or {advice}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"cannot fetch model {hub_id}: {reason}; check the network, or {advice}"


def _conversion_branch(hub_id: str) -> str | None:
    """Find the open pull request in which the hub's own bot offers the same weights as safetensors."""
    from huggingface_hub import get_repo_discussions

    try:
        requests = get_repo_discussions(hub_id, author=CONVERSION_BOT, discussion_type="pull_request")
        return next((request.git_reference for request in requests if request.status == "open"), None)
    except Exception as error:  # no conversion is no failure of its own; the caller says what is missing
        logger.info("could not ask the hub for a conversion of %s: %s", hub_id, error)
        return None
