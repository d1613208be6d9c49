"""A plain `vllm serve` that was meant to be guarded does not start without the guard."""

import sys
from types import ModuleType

import pytest

from server.launch import required

SERVERS = [
    ["/usr/bin/vllm", "serve", "model"],
    ["/lib/vllm/entrypoints/openai/api_server.py", "--model", "model"],
]
OTHERS = [["/usr/bin/vllm", "bench", "serve"], ["train.py"], ["/srv/mine/api_server.py"], [""]]


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETBACK_STREAM_MODE", "buffer")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


@pytest.mark.parametrize("argv", SERVERS)
def test_a_configured_guard_that_no_variable_names_is_missed(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="VLLM_PLUGINS=setback"):
        required.load()


@pytest.mark.parametrize("argv", OTHERS)
def test_other_programs_may_use_vllm_without_the_guard(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    required.load()


@pytest.mark.parametrize("argv", SERVERS)
def test_vllm_alone_starts_where_nothing_of_ours_is_configured(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delenv("SETBACK_STREAM_MODE")
    required.load()


def test_it_can_be_served_without_the_guard_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", SERVERS[0])
    monkeypatch.setenv("VLLM_PLUGINS", "")
    required.load()


def test_a_guard_that_cannot_be_imported_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", SERVERS[0])
    monkeypatch.setenv("VLLM_PLUGINS", "other,setback")
    required.load()
    # What an import finds when a dependency is missing.
    monkeypatch.setitem(sys.modules, "server.launch.plugin", None)
    with pytest.raises(SystemExit, match="cannot be loaded"):
        required.load()


def test_ray_serve_llm_is_refused_because_it_has_no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["default_worker.py"])
    required.load()
    monkeypatch.setitem(sys.modules, "ray.llm._internal.serve", ModuleType("serve"))
    with pytest.raises(RuntimeError, match="guarded_deployment"):
        required.load()
    monkeypatch.setenv("VLLM_PLUGINS", "")
    required.load()
