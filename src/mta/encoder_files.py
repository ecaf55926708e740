"""The files of an encoder: which folders it is read from, whether they are safe and complete, and their content id.

Example:
    >>> require_safe_weights(folder, "my-encoder")
    >>> len(encoder_fingerprint(folder, "sentence"))
    64
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from mta.errors import ModelError
from mta.files import read_json, sha256_file, sha256_json, storage_errors
from mta.hub import has_safetensors, require_safetensors

FINGERPRINT_BYTES = 1 << 20
TEXT_SUFFIXES = (".json", ".txt", ".model")


def require_safe_weights(folder: Path, name: str) -> None:
    """Refuse an encoder with missing weights, or with pickle weights in any folder it is read from.

    Raises:
        ModelError: names what was found and the way out.
    """
    folders = _model_folders(folder)
    if not any(has_safetensors(part) for part in folders):
        require_safetensors(folder, name)
    for part in folders[1:]:
        if any(part.glob("*.bin")):
            require_safetensors(part, name)


def require_tokenizer_parser(folder: Path, name: str) -> None:
    """Refuse a tokenizer that transformers cannot read without the SentencePiece parser.

    Raises:
        ModelError: the parser is missing; the message has the command that installs it.
    """
    needs_it = any(folder.glob("*.model")) and not (folder / "tokenizer.json").is_file()
    missing = [package for package in ("sentencepiece", "google.protobuf") if not _is_installed(package)]
    if needs_it and missing:
        raise ModelError(
            f"encoder {name} has a SentencePiece tokenizer, and {' and '.join(missing)} cannot be imported; "
            "run: pip install sentencepiece protobuf"
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def encoder_fingerprint(folder: Path, settings: str) -> str:
    """Return the content id of the encoder in `folder`.

    Small text files count whole; of each weight file its name, size, and first and last megabyte.

    Args:
        folder: the model's folder.
        settings: what else decides the vectors, for example the pooling.
    """
    seen: dict[str, str] = {"settings": settings}
    for part in _model_folders(folder):
        for path in sorted(part.iterdir()):
            if path.suffix == ".safetensors":
                seen[path.relative_to(folder).as_posix()] = _ends_digest(path)
            elif path.suffix in TEXT_SUFFIXES and path.is_file():
                seen[path.relative_to(folder).as_posix()] = sha256_file(path)
    return sha256_json(seen)


def _ends_digest(path: Path) -> str:
    with storage_errors(path, "read"), path.open("rb") as stream:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        digest.update(stream.read(FINGERPRINT_BYTES))
        stream.seek(max(0, size - FINGERPRINT_BYTES))
        digest.update(stream.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def _model_folders(folder: Path) -> list[Path]:
    """Return the folders an encoder is read from: its own, then those modules.json names inside it."""
    listing = folder / "modules.json"
    modules = read_json(listing) if listing.is_file() else []
    names = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    inside = [folder / name for name in names if isinstance(name, str) and name not in ("", ".") and ".." not in name]
    return [folder, *(part for part in inside if part.is_dir())]
