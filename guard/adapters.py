"""The adapter that this process answers with, and its swap while serving. Owns what the engine is
told to load and let go, the count of who uses what, and the refusal of adapters that are not what
was registered. Does not decide which adapter is active (store/adapters.py) or check files
(adapter_files.py).

Several API processes share an engine, and each has its own Adapters. What one lets go while
another still uses it, vLLM loads again from its path: so files stay where they are.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vllm.lora.request import LoRARequest

from guard.adapter_config import Shapes
from guard.adapter_files import adapter_path, verify
from guard.errors import AdapterConflict, AdapterRefused, AdapterUnknown
from guard.observer import Observer
from guard.prompts import CritiqueStyle
from guard.store.adapters import StoredAdapter
from guard.tasks import keep_refreshing, spawn

_log = logging.getLogger("vllm.setback")

BASE_ADAPTER = "base"
"""What answers are said to come from when no LoRA adapter is active."""

_FIRST_ID = 1 << 20
"""vLLM counts the ids of --lora-modules up from 1, and two adapters of one id would be mixed up."""

_RETRY_S = 60.0


class Registry(Protocol):
    """The part of AdapterStore that is needed here."""

    async def preferred(self) -> list[int | None]:
        """The version to serve, then those to fall back to in turn; None is the base."""

    async def get(self, version: int) -> StoredAdapter | None:
        """The adapter as registered."""


@dataclass(frozen=True)
class AdapterLimits:
    """What this server can load.

    folder: where adapters lie, see adapter_path. model_revision: of the served base.
    max_rank: 0 when the engine runs without LoRA. slots: adapters that the engine holds at once.
    base_critique: how verdicts are read of the base alone. base_shapes: the base's modules, as far
    as they are known; may take seconds, and is called in a thread.
    """

    folder: Path
    model_revision: str
    max_rank: int
    slots: int
    base_critique: CritiqueStyle = CritiqueStyle.YES_NO
    base_shapes: Callable[[], Shapes | None] = lambda: None


@dataclass
class _Loaded:
    """An adapter that the engine was told to load.

    critique: how verdicts are read of it. users: what is under way on it. retired: it was active,
    and goes with its last user.
    """

    version: int
    request: LoRARequest
    critique: CritiqueStyle
    users: int = 0
    retired: bool = False


def adapter_name(lora_request: LoRARequest | None) -> str:
    """How flags, headers and metrics call an adapter."""
    return lora_request.lora_name if lora_request else BASE_ADAPTER


def adapter_version(lora_request: LoRARequest | None) -> int | None:
    """The version of an adapter of ours; None for the base and for adapters of others."""
    if lora_request is None or lora_request.lora_int_id <= _FIRST_ID:
        return None
    return int(lora_request.lora_int_id) - _FIRST_ID


class Adapters:
    """Loads, swaps and lets go of adapters; one for each API process.

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
        # Held while the engine loads or lets go; told when a slot may have become free.
        self._turn = asyncio.Condition()
        self._refused: dict[int | None, float] = {}

    @property
    def active(self) -> int | None:
        """The version that new requests get; None is the base alone."""
        return self._active.version if self._active else None

    @property
    def active_name(self) -> str:
        """How flags, headers and metrics call the active adapter."""
        return adapter_name(self._active.request if self._active else None)

    @property
    def max_rank(self) -> int:
        """The largest LoRA rank that can be served; 0 when the engine runs without LoRA."""
        return self._limits.max_rank

    def critique_style(self, lora_request: LoRARequest | None) -> CritiqueStyle:
        """How verdicts are read of an adapter that is in use; any that is not ours as the base."""
        loaded = self._loaded.get(adapter_version(lora_request) or 0)
        return loaded.critique if loaded else self._limits.base_critique

    @contextmanager
    def use(self) -> Iterator[LoRARequest | None]:
        """The active adapter, which stays loaded until the end of the block."""
        loaded = self._active
        if loaded is None:
            yield None
            return
        loaded.users += 1
        try:
            yield loaded.request
        finally:
            self._done(loaded)

    @asynccontextmanager
    async def of(self, version: int | None) -> AsyncIterator[LoRARequest | None]:
        """That adapter, loaded for the block if it was not; None is the base alone.

        Raises AdapterUnknown, AdapterRefused or StoreUnavailable.
        """
        if version is None:
            yield None
            return
        loaded = self._loaded.get(version)
        if loaded is None:
            loaded = await self._load(version)
        else:
            # Not in turn: requests do not wait for the next adapter to be loaded.
            loaded.users += 1
        try:
            yield loaded.request
        finally:
            self._done(loaded)

    async def start(self) -> None:
        """Loads the active adapter, or the last good one before it, or none.

        Raises StoreUnavailable.
        """
        for version in await self._registry.preferred():
            if await self._switch(version):
                self._observer.adapter_active(version, swapped=False)
                return

    async def watch(self, poll_s: float) -> None:
        """Follows the registry until cancelled; failures are logged and tried again."""
        await keep_refreshing(self.refresh, poll_s, "which adapter is active")

    async def refresh(self) -> None:
        """Looks at the registry once, and serves what it says is active if that can be served.

        Raises StoreUnavailable.
        """
        version = (await self._registry.preferred())[0]
        if version == self.active or self._lately_refused(version):
            return
        if await self._switch(version):
            self._observer.adapter_active(version, swapped=True)

    async def unload(self, version: int) -> None:
        """Takes an adapter out of the engine once nothing uses it.

        Raises AdapterUnknown, AdapterConflict for the active one, StoreUnavailable.
        """
        await self._registered(version)
        if version == self.active:
            raise AdapterConflict(f"Adapter {version} is active and stays loaded")
        if version in self._loaded:
            self._loaded[version].retired = True
            await self._settle(self._loaded[version])

    def _lately_refused(self, version: int | None) -> bool:
        at = self._refused.get(version)
        return at is not None and time.monotonic() - at < _RETRY_S

    async def _switch(self, version: int | None) -> bool:
        """Gives new requests that adapter; False, logged and counted, when it was refused."""
        try:
            loaded = None if version is None else await self._load(version, check_again=True)
        except (AdapterRefused, AdapterUnknown) as error:
            assert version is not None
            self._refused[version] = time.monotonic()
            self._observer.adapter_refused(version)
            _log.error("%s. Serving %s instead.", error, self.active_name)
            return False
        before, self._active = self._active, loaded
        if loaded is not None:
            loaded.retired = False
            self._done(loaded)
        if before is not None:
            before.retired = True
            self._settle_if_idle(before)
        _log.info("Serving %s from now on", self.active_name)
        return True

    def _done(self, loaded: _Loaded) -> None:
        loaded.users -= 1
        self._settle_if_idle(loaded)

    def _settle_if_idle(self, loaded: _Loaded) -> None:
        if not loaded.users and loaded is not self._active:
            spawn(self._settle(loaded))

    async def _settle(self, loaded: _Loaded) -> None:
        """Lets go of what was active before; a candidate stays, since its next batch comes soon."""
        async with self._turn:
            if loaded.retired:
                await self._remove_if_idle(loaded)
            self._turn.notify_all()

    async def _remove_if_idle(self, loaded: _Loaded) -> None:
        idle = not loaded.users and loaded is not self._active
        if idle and self._loaded.get(loaded.version) is loaded:
            del self._loaded[loaded.version]
            await self._engine.remove_lora(loaded.request.lora_int_id)

    async def _load(self, version: int, *, check_again: bool = False) -> _Loaded:
        """The adapter, loaded, with one use counted, which the caller ends.

        check_again: look at its files although it is loaded, since the engine may yet read them.
        """
        async with self._turn:
            # An engine with more adapters than slots would drop one that is in use.
            while version not in self._loaded and not await self._room():
                await self._turn.wait()
            if check_again or version not in self._loaded:
                request, critique = await self._verified(version)
            if version not in self._loaded:
                await self._tell_engine(version, request)
                self._loaded[version] = _Loaded(version, request, critique)
            loaded = self._loaded[version]
            loaded.users += 1
            return loaded

    async def _room(self) -> bool:
        """Whether the engine has a slot to spare, after letting go of what is idle if needed."""
        for loaded in list(self._loaded.values()):
            if len(self._loaded) >= self._limits.slots:
                await self._remove_if_idle(loaded)
        return len(self._loaded) < self._limits.slots

    async def _verified(self, version: int) -> tuple[LoRARequest, CritiqueStyle]:
        """What to tell the engine about an adapter whose every byte was checked just now, and how
        it is asked for verdicts."""
        stored = await self._registered(version)
        limits = self._limits
        if not limits.max_rank:
            raise AdapterRefused(
                f"Adapter {version}: this server runs without LoRA; start it without "
                "--no-enable-lora"
            )
        path = adapter_path(limits.folder, version).absolute()
        try:
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
        request = LoRARequest(f"setback-{version}", _FIRST_ID + version, str(path))
        return request, manifest.critique

    async def _registered(self, version: int) -> StoredAdapter:
        stored = await self._registry.get(version)
        if stored is None:
            raise AdapterUnknown(f"There is no adapter {version}")
        return stored

    async def _tell_engine(self, version: int, request: LoRARequest) -> None:
        try:
            done = await self._engine.add_lora(request)
        except Exception as error:
            raise AdapterRefused(
                f"Adapter {version} could not be loaded by the engine: {error}"
            ) from error
        if not done:
            raise AdapterRefused(f"Adapter {version} was not taken by the engine")
