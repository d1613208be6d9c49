"""Puts the guarded engine into vLLM's request handlers, and checks that none was missed. Owns the
search through the application state: vLLM's objects, containers, bound methods and partial calls.
Does not search closures, and does not guard answers itself (guard/engine.py).
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

from starlette.datastructures import State

from guard.engine import GuardedEngine
from guard.errors import UnguardedRoute, Unsupported
from guard.vllm.call_reader import read_calls_of

_MAX_OBJECTS = 100_000
"""About a hundred times as many as vLLM's state has."""


@dataclass(frozen=True)
class _Reference:
    """Where an engine is held. key: an attribute's name, or a container's key or index."""

    holder: Any
    key: Any
    engine: object

    def __str__(self) -> str:
        kind = type(self.holder).__name__
        is_attribute = isinstance(self.key, str) and not isinstance(self.holder, Mapping)
        return f"{kind}.{self.key}" if is_attribute else f"{kind}[{self.key!r}]"

    def replace(self, engine: GuardedEngine) -> None:
        """Puts another engine there. What cannot be changed fails the check."""
        if isinstance(self.holder, dict | list):
            self.holder[self.key] = engine
        elif not isinstance(self.holder, tuple | set | frozenset | partial | MethodType):
            object.__setattr__(self.holder, self.key, engine)


def install_guard(state: State, engine: object, guarded: GuardedEngine) -> None:
    """Replaces `engine` by `guarded` in every handler in `state`, then checks the result.

    Raises UnguardedRoute when a handler still holds another engine.
    """
    state.engine_client = guarded
    for reference in list(_engines(state)):
        if reference.engine is engine:
            reference.replace(guarded)
        # Beam search generates one token at a time: no output is an answer that can be judged.
        if hasattr(reference.holder, "beam_search"):
            reference.holder.beam_search = _refuse_beam_search
        read_calls_of(reference.holder)
    check_guarded(state)


def check_guarded(state: State) -> None:
    """Raises UnguardedRoute unless every handler that holds an engine holds a guarded one, or when
    the state is too large to be searched."""
    if not isinstance(getattr(state, "engine_client", None), GuardedEngine):
        raise UnguardedRoute("The guard plugin was not loaded; refusing to serve unguarded.")
    for reference in _engines(state):
        if not isinstance(reference.engine, GuardedEngine):
            raise UnguardedRoute(f"{reference} holds an unguarded engine; refusing to serve.")


def _engines(state: State) -> Iterator[_Reference]:
    """Yields every reference to an engine that request handlers can reach."""
    seen: dict[int, object] = {}
    to_visit: list[object] = [state._state]
    while to_visit:
        holder = to_visit.pop()
        if id(holder) in seen:
            continue
        # Kept alive: the id of a temporary object could be given to another one.
        seen[id(holder)] = holder
        if len(seen) > _MAX_OBJECTS:
            raise UnguardedRoute(
                f"The application state has more than {_MAX_OBJECTS} objects, so it cannot be "
                "checked for unguarded engines; refusing to serve."
            )
        for key, value in _children(holder):
            if _is_engine(value):
                yield _Reference(holder, key, value)
            else:
                to_visit.append(value)


def _children(holder: Any) -> Iterator[tuple[Hashable, object]]:
    """Yields what an object holds, by key, index or attribute; nothing for other libraries'."""
    if isinstance(holder, Mapping):
        yield from list(holder.items())
    elif isinstance(holder, list | tuple | set | frozenset):
        yield from enumerate(holder)
    elif isinstance(holder, partial):
        yield from (("func", holder.func), ("args", holder.args), ("keywords", holder.keywords))
    elif isinstance(holder, MethodType):
        yield "__self__", holder.__self__
    elif type(holder).__module__.partition(".")[0] == "vllm":
        yield from list(getattr(holder, "__dict__", {}).items())
        for name in getattr(type(holder), "__slots__", ()):
            if hasattr(holder, name):
                yield name, getattr(holder, name)


def _is_engine(value: object) -> bool:
    return isinstance(value, GuardedEngine) or (
        hasattr(value, "generate") and hasattr(value, "check_admission")
    )


def _refuse_beam_search(*_args: object, **_options: object) -> None:
    raise Unsupported(
        "Beam search cannot be guarded; leave use_beam_search out and ask for n answers instead.",
        param="use_beam_search",
    )
