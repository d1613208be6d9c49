"""The adapter that this process serves, and its swap without a restart. Owns which adapters the
engine loads and unloads, the use count of each, and the refusal of adapters whose files changed.
Does not decide which adapter is active (store/adapters.py) or check files (adapter_files.py).

Several API processes share an engine, each with its own Adapters. When one process unloads an
adapter that another still uses, vLLM reloads it from its path, so the files must stay in place.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from vllm.lora.request import LoRARequest

from guard.adapter_config import Shapes
from guard.adapter_files import adapter_path, verify
from guard.adapter_folder import AdapterFolder
from guard.errors import AdapterConflict, AdapterRefused, AdapterUnknown
from guard.observer import Observer
from guard.prompts import CritiqueStyle
from guard.store.adapters import StoredAdapter
from guard.tasks import keep_refreshing, spawn

_log = logging.getLogger("vllm.setback")

BASE_ADAPTER = "base"
"""The adapter name of answers that come from the base model alone."""

_FIRST_LORA_ID = 1 << 20
"""vLLM numbers --lora-modules from 1, and it would mix up two adapters with the same id."""

_RETRY_S = 60.0


class Registry(Protocol):
    """The part of AdapterStore that Adapters uses."""

    async def preferred(self) -> list[int | None]:
        """Returns the version to serve, then its fallbacks in order; None is the base model."""

    async def get(self, version: int) -> StoredAdapter | None:
        """Returns the adapter as registered."""


@dataclass(frozen=True)
class AdapterLimits:
    """What this server can load.

    folder: where adapters are stored. model_revision: of the served base model.
    max_rank: 0 when the engine runs without LoRA. slots: adapters the engine holds at once.
    base_critique: the base model's critique style. base_shapes: returns the base model's modules,
    if known; it may take seconds and is called in a thread.
    """

    folder: AdapterFolder
    model_revision: str
    max_rank: int
    slots: int
    base_critique: CritiqueStyle = CritiqueStyle.YES_NO
    base_shapes: Callable[[], Shapes | None] = lambda: None


@dataclass
class _Loaded:
    """An adapter that the engine has loaded.

    critique: its critique style. users: requests that use it. retired: it was active before, and is
    unloaded with its last user.
    """

    version: int
    request: LoRARequest
    critique: CritiqueStyle
    users: int = 0
    retired: bool = False


def name_of(version: int | None) -> str:
    """Returns the name of a version's adapter; None is the base model."""
    return BASE_ADAPTER if version is None else f"setback-{version}"


def adapter_name(lora_request: LoRARequest | None) -> str:
    """Returns the adapter's name in flags, headers and metrics."""
    return lora_request.lora_name if lora_request else BASE_ADAPTER


def adapter_version(lora_request: LoRARequest | None) -> int | None:
    """Returns the version of an adapter that this server trained, or None for any other."""
    if lora_request is None or lora_request.lora_int_id <= _FIRST_LORA_ID:
        return None
    return int(lora_request.lora_int_id) - _FIRST_LORA_ID


class Adapters:
    """Loads, swaps and unloads adapters. Each API process has one.

    Usage:
        await adapters.start()
        spawn(adapters.watch(2.0))
        with adapters.use() as lora_request:
            engine.generate(..., lora_request=lora_request)
    """

    def __init__(
        self, engine: Any, registry: Registry, limits: AdapterLimits, observer: Observer
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._limits = limits
        self._observer = observer
        self._active: _Loaded | None = None
        self._loaded: dict[int, _Loaded] = {}
        # Held while the engine loads or unloads; notified when a slot may have become free.
        self._slots_changed = asyncio.Condition()
        self._refused: dict[int | None, float] = {}
        self._refreshing = asyncio.Lock()

    @property
    def active(self) -> int | None:
        """The version that new requests get; None is the base model."""
        return self._active.version if self._active else None

    @property
    def active_name(self) -> str:
        """The active adapter's name in flags, headers and metrics."""
        return adapter_name(self._active.request if self._active else None)

    @property
    def max_rank(self) -> int:
        """The largest LoRA rank that can be served; 0 when the engine runs without LoRA."""
        return self._limits.max_rank

    def critique_style(self, lora_request: LoRARequest | None) -> CritiqueStyle:
        """Returns the critique style of a loaded adapter; the base model's for any other."""
        loaded = self._loaded.get(adapter_version(lora_request) or 0)
        return loaded.critique if loaded else self._limits.base_critique

    @contextmanager
    def use(self) -> Iterator[LoRARequest | None]:
        """Yields the active adapter, which stays loaded for the block."""
        loaded = self._active
        if loaded is None:
            yield None
            return
        loaded.users += 1
        try:
            yield loaded.request
        finally:
            self._release(loaded)

    @asynccontextmanager
    async def of(self, version: int | None) -> AsyncIterator[LoRARequest | None]:
        """Yields an adapter, loaded for the block; None is the base model.

        Raises AdapterUnknown, AdapterRefused or StoreUnavailable.
        """
        if version is None:
            yield None
            return
        loaded = self._loaded.get(version)
        if loaded is None:
            loaded = await self._load(version)
        else:
            # Without the lock: requests do not wait while another adapter loads.
            loaded.users += 1
        try:
            yield loaded.request
        finally:
            self._release(loaded)

    async def start(self) -> None:
        """Loads the active adapter, or its newest usable predecessor, or none.

        Raises StoreUnavailable.
        """
        for version in await self._registry.preferred():
            if await self._switch(version):
                self._observer.adapter_active(version, swapped=False)
                return

    async def watch(self, poll_s: float) -> None:
        """Follows the registry until cancelled. Logs failures and retries."""
        await keep_refreshing(self.refresh, poll_s, "which adapter is active")

    async def refresh(self) -> None:
        """Reads the registry once and switches to its active adapter if that can be served.

        Raises StoreUnavailable.
        """
        async with self._refreshing:
            version = (await self._registry.preferred())[0]
            if version == self.active or self._recently_refused(version):
                return
            if await self._switch(version):
                self._observer.adapter_active(version, swapped=True)

    async def unload(self, version: int) -> None:
        """Unloads an adapter once nothing uses it.

        Raises AdapterUnknown, AdapterConflict for the active adapter, or StoreUnavailable.
        """
        await self._registered(version)
        if version == self.active:
            raise AdapterConflict(f"Adapter {version} is active and stays loaded")
        if version in self._loaded:
            self._loaded[version].retired = True
            await self._unload_retired(self._loaded[version])

    def _recently_refused(self, version: int | None) -> bool:
        refused_at = self._refused.get(version)
        return refused_at is not None and time.monotonic() - refused_at < _RETRY_S

    async def _switch(self, version: int | None) -> bool:
        """Makes an adapter active for new requests. Logs, counts and returns False if refused."""
        try:
            loaded = None if version is None else await self._load(version, check_again=True)
        except (AdapterRefused, AdapterUnknown) as error:
            assert version is not None
            self._refused[version] = time.monotonic()
            self._observer.adapter_refused(version)
            _log.error("%s. Serving %s instead.", error, self.active_name)
            return False
        previous, self._active = self._active, loaded
        if loaded is not None:
            loaded.retired = False
            self._release(loaded)
        if previous is not None:
            previous.retired = True
            self._unload_soon(previous)
        _log.info("Serving %s from now on", self.active_name)
        return True

    def _release(self, loaded: _Loaded) -> None:
        loaded.users -= 1
        self._unload_soon(loaded)

    def _unload_soon(self, loaded: _Loaded) -> None:
        if not loaded.users and loaded is not self._active:
            spawn(self._unload_retired(loaded))

    async def _unload_retired(self, loaded: _Loaded) -> None:
        """Unloads a former active adapter. A candidate stays: its next batch comes soon."""
        async with self._slots_changed:
            if loaded.retired:
                await self._remove_if_idle(loaded)
            self._slots_changed.notify_all()

    async def _remove_if_idle(self, loaded: _Loaded) -> None:
        idle = not loaded.users and loaded is not self._active
        if idle and self._loaded.get(loaded.version) is loaded:
            del self._loaded[loaded.version]
            await self._engine.remove_lora(loaded.request.lora_int_id)

    async def _load(self, version: int, *, check_again: bool = False) -> _Loaded:
        """Returns the adapter, loaded and with one use counted; the caller ends that use.

        check_again: check its files even if it is loaded, because the engine may reload them.
        """
        async with self._slots_changed:
            # With more adapters than slots, the engine would evict one that is in use.
            while version not in self._loaded and not await self._has_free_slot():
                await self._slots_changed.wait()
            if check_again or version not in self._loaded:
                request, critique = await self._verified(version)
            if version not in self._loaded:
                await self._load_into_engine(version, request)
                self._loaded[version] = _Loaded(version, request, critique)
            loaded = self._loaded[version]
            loaded.users += 1
            return loaded

    async def _has_free_slot(self) -> bool:
        """Whether the engine has a free slot, after unloading idle adapters if needed."""
        for loaded in list(self._loaded.values()):
            if len(self._loaded) >= self._limits.slots:
                await self._remove_if_idle(loaded)
        return len(self._loaded) < self._limits.slots

    async def _verified(self, version: int) -> tuple[LoRARequest, CritiqueStyle]:
        """Checks every file of an adapter. Returns its LoRA request and its critique style."""
        stored = await self._registered(version)
        limits = self._limits
        if not limits.max_rank:
            raise AdapterRefused(
                f"Adapter {version}: this server runs without LoRA; start it without "
                "--no-enable-lora"
            )
        path = adapter_path(limits.folder.path, version)
        try:
            path = await asyncio.to_thread(limits.folder.fetch, version, stored.sha256)
            base = await asyncio.to_thread(limits.base_shapes)
            manifest = await asyncio.to_thread(
                verify,
                path,
                version=version,
                sha256=stored.sha256,
                model_revision=limits.model_revision,
                max_rank=limits.max_rank,
                base=base,
            )
        except OSError as error:
            raise AdapterRefused(f"Adapter {version} in {path} cannot be read: {error}") from error
        request = LoRARequest(name_of(version), _FIRST_LORA_ID + version, str(path))
        return request, manifest.critique

    async def _registered(self, version: int) -> StoredAdapter:
        stored = await self._registry.get(version)
        if stored is None:
            raise AdapterUnknown(f"There is no adapter {version}")
        return stored

    async def _load_into_engine(self, version: int, request: LoRARequest) -> None:
        try:
            loaded = await self._engine.add_lora(request)
        except Exception as error:
            raise AdapterRefused(
                f"Adapter {version} could not be loaded by the engine: {error}"
            ) from error
        if not loaded:
            raise AdapterRefused(f"Adapter {version} was not taken by the engine")
