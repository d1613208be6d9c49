"""The guarded engine replaces the bare one in all handlers, and gaps are refused."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import State

from guard.errors import UnguardedRoute, Unsupported
from server.launch.guarded_handlers import check_guarded, install_guard
from tests.scripted import Bench


def handler(**attributes: object) -> Any:
    """Returns an object that looks like one of vLLM's entrypoints."""
    kind = type("Handler", (), {"__module__": "vllm.entrypoints.scripted"})
    made = kind()
    made.__dict__.update(attributes)
    return made


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


def test_a_handler_added_after_sealing_is_found(bench: Bench) -> None:
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
