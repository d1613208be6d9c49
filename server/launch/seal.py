"""Puts the guarded engine where vLLM's handlers hold the bare one, and proves that none was
missed. Owns the search through the application state; does not guard anything itself.
"""

from collections.abc import Iterator
from typing import Any

from starlette.datastructures import State

from guard.engine import GuardedEngine
from guard.errors import UnguardedRoute, Unsupported

_DEPTH = 5
_OWN_MODULES = ("vllm.entrypoints", "vllm.renderers")


def seal(state: State, engine: object, guarded: GuardedEngine) -> None:
    """Replaces `engine` by `guarded` in every handler in `state`, then proves it.

    Raises UnguardedRoute when a handler still holds an engine that is not `guarded`.
    """
    state.engine_client = guarded
    for holder, name, value in _engines(state):
        if value is engine:
            object.__setattr__(holder, name, guarded)
        # Beam search asks the engine for one token at a time: no piece is an answer to judge.
        if hasattr(holder, "beam_search"):
            holder.beam_search = _refuse_beam_search
    prove(state)


def prove(state: State) -> None:
    """Raises UnguardedRoute unless every handler that holds an engine holds a guarded one."""
    if not isinstance(getattr(state, "engine_client", None), GuardedEngine):
        raise UnguardedRoute("The guard plugin was not loaded; refusing to serve unguarded.")
    for holder, name, value in _engines(state):
        if not isinstance(value, GuardedEngine):
            raise UnguardedRoute(
                f"{type(holder).__name__}.{name} holds an unguarded engine; refusing to serve."
            )


def _engines(state: State) -> Iterator[tuple[Any, str, object]]:
    """Every (holder, attribute, engine) that request handlers can reach."""
    seen: set[int] = set()
    found: list[tuple[Any, str, object]] = []

    def visit(holder: object, depth: int) -> None:
        if id(holder) in seen or depth == 0:
            return
        seen.add(id(holder))
        for name, value in list(getattr(holder, "__dict__", {}).items()):
            if _is_engine(value):
                found.append((holder, name, value))
            elif type(value).__module__.startswith(_OWN_MODULES):
                visit(value, depth - 1)

    for value in state._state.values():
        if type(value).__module__.startswith(_OWN_MODULES):
            visit(value, _DEPTH)
    yield from found


def _is_engine(value: object) -> bool:
    return isinstance(value, GuardedEngine) or (
        hasattr(value, "generate") and hasattr(value, "check_admission")
    )


def _refuse_beam_search(*_args: object, **_options: object) -> None:
    raise Unsupported(
        "Beam search cannot be guarded; leave use_beam_search out and ask for n answers instead.",
        param="use_beam_search",
    )
