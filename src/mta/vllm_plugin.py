"""A plugin for vLLM that makes a person's LoRA when a request asks for it.

vLLM finds `register` by its entry point (`vllm.general_plugins`), and needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. A
request names the adapter `user:NAME@REVISION`; the resolver puts it together from the store and the bank, writes it to
a folder in memory, and hands it over. Settings come from the environment:

    MTA_VLLM_STORE      where people are, for example sqlite:///users.db
    MTA_VLLM_BANK       folder of the bank
    MTA_VLLM_TENANT     whose people may be named; "default" if not given
    MTA_VLLM_BASE       the base model, as vLLM was told to serve it
    MTA_VLLM_RANK       largest rank, vLLM's --max-lora-rank; 16 if not given
    MTA_VLLM_FOLDER     where adapters are written; a folder in /dev/shm where there is one
    MTA_VLLM_KEEP       adapters kept there by each process; 512 if not given
    MTA_VLLM_SECRET     if given, names must end in a signature made with it, see `signed_name`

vLLM remembers what was resolved, and reads an adapter's folder again when it has pushed the adapter out of its own
memory. So MTA_VLLM_KEEP should be as many as are asked for between two starts; the folder of an old revision goes when
it is asked for after a new one has come. Merged anchors, revision 0, stay as they were when first asked for, until vLLM
starts again.

Why names look as they do: vLLM keeps keys and values by the adapter's name, so that a new revision needs a new name;
its numbers of adapters must be equal in all processes, so that they are made from the name and not by Python's hash;
and whoever may send requests may send any name, so that names can be signed.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import hmac
import logging
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mta.errors import ConfigError, MtaError, NotFound
from mta.files import make_folder
from mta.runtime import cache_folder
from mta.serving.composition import Composition
from mta.serving.hand_over import export_person
from mta.serving.tenants import Tenant

log = logging.getLogger(__name__)

PREFIX = "user:"
SIGNATURE_CHARS = 32
SHARED = Path("/dev/shm")
"""A folder in memory on Linux."""


@dataclass(frozen=True, slots=True)
class AdapterName:
    """What a request's adapter name says."""

    user: str
    revision: int
    """0: the anchors merged."""


def adapter_name(user: str, revision: int) -> str:
    """Return the name to ask vLLM for."""
    return f"{PREFIX}{user}@{revision}"


def signed_name(user: str, revision: int, *, secret: str) -> str:
    """Return the name to ask for where names must be signed."""
    name = adapter_name(user, revision)
    return f"{name}~{_signature(name, secret)}"


def _signature(name: str, secret: str) -> str:
    return hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()[:SIGNATURE_CHARS]


def parse_name(name: str, *, secret: str = "") -> AdapterName | None:
    """Read a name; None where it is none of ours, or its signature is not right."""
    plain = name
    if secret:
        plain, _, signature = name.rpartition("~")
        if not hmac.compare_digest(signature, _signature(plain, secret)):
            return None
    user, at, revision = plain.removeprefix(PREFIX).rpartition("@")
    if not plain.startswith(PREFIX) or not user or not at or not revision.isascii() or not revision.isdigit():
        return None
    return AdapterName(user, int(revision))


def stable_id(name: str) -> int:
    """Return a number for an adapter that is the same in every process, 1 to 2^31 - 1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % (2**31 - 1) + 1


@dataclass
class UserResolver:
    """Makes people's adapters; what vLLM calls is `resolve_lora`.

    Args:
        composition: finds the parts of an adapter.
        tenant: whose people may be named.
        base_model: the base model, as vLLM was told to serve it; others are not answered.
        folder: where adapters are written; this resolver's alone.
        make_request: vLLM's `LoRARequest`, called with `lora_name`, `lora_int_id` and `lora_path`.
        rank: largest rank.
        keep: adapters kept in the folder, those asked for last.
        secret: what names are signed with; "" for unsigned names.
    """

    composition: Composition
    tenant: Tenant
    base_model: str
    folder: Path
    make_request: Callable[..., Any]
    rank: int = 16
    keep: int = 512
    secret: str = ""
    _written: OrderedDict[str, Path] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any | None:
        """Return the request for an adapter, or None for what is not ours or not there."""
        wanted = parse_name(lora_name, secret=self.secret)
        if wanted is None or base_model_name != self.base_model:
            return None
        try:
            path = await asyncio.to_thread(self._ready, lora_name, wanted)
        except NotFound:
            return None
        except MtaError as error:
            log.warning("adapter %s could not be made: %s", hashlib.sha256(lora_name.encode()).hexdigest()[:12], error)
            return None
        if path is None:
            return None
        return self.make_request(lora_name=lora_name, lora_int_id=stable_id(lora_name), lora_path=str(path))

    def _ready(self, name: str, wanted: AdapterName) -> Path | None:
        """Return the folder of an adapter, written if need be; None where the revision is not the current one."""
        with self._lock:
            user = self.composition.store.find_user(self.tenant, wanted.user)
            if self.composition.revision(user) != wanted.revision:
                self._remove(name)
                return None
            if name not in self._written:
                handed = export_person(
                    self.composition, user, self.folder, base_model=self.base_model, rank_budget=self.rank
                )
                if handed is None:
                    return None
                self._written[name] = self.folder / handed.folder
                if handed.revision != wanted.revision:  # a new one has come in between
                    self._remove(name)
                    return None
            self._written.move_to_end(name)
            while len(self._written) > self.keep:
                self._remove(next(iter(self._written)))
            return self._written[name]

    def _remove(self, name: str) -> None:
        if path := self._written.pop(name, None):
            shutil.rmtree(path, ignore_errors=True)


def resolver_from(environment: Mapping[str, str], make_request: Callable[..., Any]) -> UserResolver:
    """Make the resolver as the environment says.

    Raises:
        ConfigError: a setting is missing or no number.
        MtaError: store or bank cannot be opened.
    """
    from mta.bank import load_bank
    from mta.encoders import load_encoder
    from mta.runtime import choose_device
    from mta.serving.database import open_database
    from mta.serving.tenants import find_tenant
    from mta.serving.user_store import UserStore

    def setting(name: str, default: str | None = None) -> str:
        value = environment.get(f"MTA_VLLM_{name}", default)
        if value is None:
            raise ConfigError(f"set MTA_VLLM_{name}; see mta.vllm_plugin")
        return value

    def number(name: str, default: str) -> int:
        value = setting(name, default)
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            raise ConfigError(f"MTA_VLLM_{name} is {value!r}; wanted a number above 0")
        return int(value)

    database = open_database(setting("STORE"))
    bank = load_bank(Path(setting("BANK")))
    encoder = load_encoder(bank.config.match.encoder, device=choose_device("cpu"))
    return UserResolver(
        Composition(store=UserStore(database), bank=bank, encoder=encoder, top_k=bank.config.match.top_k),
        tenant=find_tenant(database, setting("TENANT", "default")),
        base_model=setting("BASE"),
        folder=own_folder(Path(setting("FOLDER", str(default_folder())))),
        make_request=make_request,
        rank=number("RANK", "16"),
        keep=number("KEEP", "512"),
        secret=setting("SECRET", ""),
    )


def default_folder() -> Path:
    """Return a folder in memory, where the system has one."""
    return (SHARED if SHARED.is_dir() else cache_folder()) / "mta-adapters"


def own_folder(folder: Path) -> Path:
    """Return a new folder for this process, which goes with it; what processes that were killed have left goes now."""
    make_folder(folder)
    for left in folder.glob("process-*"):
        if not psutil.pid_exists(int(left.name.removeprefix("process-"))):
            shutil.rmtree(left, ignore_errors=True)
    own = folder / f"process-{os.getpid()}"
    shutil.rmtree(own, ignore_errors=True)
    make_folder(own)
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def register() -> None:
    """Register the resolver with vLLM, which calls this in each of its processes; without settings nothing is done."""
    if "MTA_VLLM_STORE" not in os.environ:
        return
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    LoRAResolver.register(UserResolver)
    LoRAResolverRegistry.register_resolver("mta", resolver_from(os.environ, LoRARequest))
