"""Puts the guarded engine into vLLM's request handlers, and checks that none was missed. Owns the
search through the application state. Does not guard answers itself (guard/engine.py).
"""

from collections.abc import Iterator
from typing import Any

from starlette.datastructures import State

from guard.engine import GuardedEngine
from guard.errors import UnguardedRoute, Unsupported

_MAX_DEPTH = 5
_VLLM_MODULES = ("vllm.entrypoints", "vllm.renderers")


def install_guard(state: State, engine: object, guarded: GuardedEngine) -> None:
    """Replaces `engine` by `guarded` in every handler in `state`, then checks the result.

    Raises UnguardedRoute when a handler still holds another engine.
    """
    state.engine_client = guarded
    for holder, name, value in _engines(state):
        if value is engine:
            object.__setattr__(holder, name, guarded)
        # Beam search generates one token at a time: no output is an answer that can be judged.
        if hasattr(holder, "beam_search"):
            holder.beam_search = _refuse_beam_search
    check_guarded(state)


def check_guarded(state: State) -> None:
    """Raises UnguardedRoute unless every handler that holds an engine holds a guarded one."""
    if not isinstance(getattr(state, "engine_client", None), GuardedEngine):
        raise UnguardedRoute("The guard plugin was not loaded; refusing to serve unguarded.")
    for holder, name, value in _engines(state):
        if not isinstance(value, GuardedEngine):
            raise UnguardedRoute(
                f"{type(holder).__name__}.{name} holds an unguarded engine; refusing to serve."
            )


def _engines(state: State) -> Iterator[tuple[Any, str, object]]:
    """Yields every (holder, attribute, engine) that request handlers can reach."""
    seen: set[int] = set()
    engines: list[tuple[Any, str, object]] = []

    def visit(holder: object, depth: int) -> None:
        if id(holder) in seen or depth == 0:
            return
        seen.add(id(holder))
        for name, value in list(getattr(holder, "__dict__", {}).items()):
            if _is_engine(value):
                engines.append((holder, name, value))
            elif type(value).__module__.startswith(_VLLM_MODULES):
                visit(value, depth - 1)

    for value in state._state.values():
        if type(value).__module__.startswith(_VLLM_MODULES):
            visit(value, _MAX_DEPTH)
    yield from engines


def _is_engine(value: object) -> bool:
    return isinstance(value, GuardedEngine) or (
        hasattr(value, "generate") and hasattr(value, "check_admission")
    )


def _refuse_beam_search(*_args: object, **_options: object) -> None:
    raise Unsupported(
        "Beam search cannot be guarded; leave use_beam_search out and ask for n answers instead.",
        param="use_beam_search",
    )
