"""The guarded engine replaces the bare one in all handlers, and gaps are refused."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import State

from guard.errors import UnguardedRoute, Unsupported
from server.launch import guarded_handlers
from server.launch.guarded_handlers import check_guarded, install_guard
from tests.scripted import Bench


def handler(**attributes: object) -> Any:
    """Returns an object that looks like one of vLLM's entrypoints."""
    kind = type("Handler", (), {"__module__": "vllm.entrypoints.scripted"})
    instance = kind()
    instance.__dict__.update(attributes)
    return instance


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


def test_every_handler_gets_the_guarded_engine(bench: Bench) -> None:
    nested = handler(engine_client=bench.engine)
    outer = handler(engine_client=bench.engine, strategy=handler(context=nested))
    state = State({"chat": outer, "engine_client": bench.engine})
    install_guard(state, bench.engine, bench.guarded)
    assert outer.engine_client is nested.engine_client is state.engine_client is bench.guarded


def test_an_unknown_engine_in_a_handler_is_refused(bench: Bench, tokenizer: Any) -> None:
    stranger = SimpleNamespace(generate=None, check_admission=None)
    state = State({"chat": handler(engine_client=stranger)})
    with pytest.raises(UnguardedRoute, match=r"Handler\.engine_client"):
        install_guard(state, bench.engine, bench.guarded)


def test_engines_deep_inside_and_in_containers_are_replaced(bench: Bench) -> None:
    deep = innermost = handler(engine_client=bench.engine)
    for _ in range(30):
        deep = handler(next=deep)
    in_list, in_dict = [handler(engine=bench.engine), bench.engine], {"chat": bench.engine}
    state = State({"deep": deep, "lists": handler(pools=(in_list,)), "by_name": in_dict})
    install_guard(state, bench.engine, bench.guarded)
    assert innermost.engine_client is in_list[0].engine is in_list[1] is bench.guarded
    assert in_dict["chat"] is bench.guarded


@pytest.mark.parametrize("kind", ["a tuple", "a method", "a partial call", "slots"])
def test_an_engine_that_cannot_be_replaced_is_refused(bench: Bench, kind: str) -> None:
    def call(engine: object) -> object:
        return engine

    slotted = type(
        "Slotted", (), {"__module__": "vllm.entrypoints.scripted", "__slots__": ("engine",)}
    )()
    slotted.engine = SimpleNamespace(generate=None, check_admission=None)
    held: dict[str, object] = {
        "a tuple": (bench.engine,),
        "a method": bench.engine.check_admission,
        "a partial call": partial(call, bench.engine),
        "slots": slotted,
    }
    with pytest.raises(UnguardedRoute, match="holds an unguarded engine"):
        install_guard(State({"chat": handler(it=held[kind])}), bench.engine, bench.guarded)


def test_a_state_too_large_to_search_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_handlers, "_MAX_OBJECTS", 5)
    state = State({"chat": [handler() for _ in range(10)]})
    with pytest.raises(UnguardedRoute, match="cannot be checked"):
        install_guard(state, bench.engine, bench.guarded)


def test_a_handler_added_after_the_check_is_found(bench: Bench) -> None:
    state = State({"chat": handler(engine_client=bench.engine)})
    install_guard(state, bench.engine, bench.guarded)
    state.late = handler(engine_client=bench.engine)
    with pytest.raises(UnguardedRoute):
        check_guarded(state)


def test_without_the_plugin_there_is_no_serving(bench: Bench) -> None:
    with pytest.raises(UnguardedRoute, match="plugin"):
        check_guarded(State({"engine_client": bench.engine}))
    with pytest.raises(UnguardedRoute, match="plugin"):
        check_guarded(State({}))


def test_beam_search_is_refused_by_name(bench: Bench) -> None:
    chat = handler(engine_client=bench.engine, beam_search=lambda: "tokens")
    install_guard(State({"chat": chat}), bench.engine, bench.guarded)
    with pytest.raises(Unsupported) as caught:
        chat.beam_search()
    assert caught.value.param == "use_beam_search"
