"""Every route is guarded, cannot generate, is for the refine loop, or is closed."""

from argparse import Namespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette._utils import get_route_path
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from server.routes.open import CANNOT_GENERATE, CONSOLE, GUARDED, REFINE, REVIEW, path_of

TASKS = ("generate", "render", "transcription", "realtime", "embed", "classify", "score")


@pytest.fixture(scope="module")
def arguments() -> Namespace:
    parsed: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    return parsed


def build(arguments: Namespace, monkeypatch: pytest.MonkeyPatch, plugins: str) -> FastAPI:
    """vLLM's application with everything it can serve, including dev-mode routes."""
    monkeypatch.setenv("VLLM_PLUGINS", plugins)
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    tasks: Any = TASKS
    return build_app(arguments, tasks, None)


def paths(app: FastAPI) -> set[str]:
    return {route.path for route in app.routes}  # type: ignore[attr-defined]


def test_only_known_routes_stay(arguments: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = paths(build(arguments, monkeypatch, "none"))
    remaining = paths(build(arguments, monkeypatch, "setback"))
    assert bare - remaining, "vLLM registers routes that this test should see closed"
    assert {"/invocations", "/inference/v1/generate", "/v1/load_lora_adapter"} & bare
    assert remaining == GUARDED | REFINE | REVIEW | CONSOLE | CANNOT_GENERATE


def test_a_named_route_stays_open(arguments: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETBACK_OPEN_ROUTES", "/invocations")
    remaining = paths(build(arguments, monkeypatch, "setback"))
    assert remaining == GUARDED | REFINE | REVIEW | CONSOLE | CANNOT_GENERATE | {"/invocations"}


@pytest.mark.parametrize(
    ("path", "root_path", "below"),
    [
        ("/v1/guard/flags", "", "/v1/guard/flags"),
        ("/setback/v1/guard/flags", "/setback", "/v1/guard/flags"),
        ("/v1/guard/flags", "/setback", "/v1/guard/flags"),
        # Starlette calls the route all the same, so the guard and the keys must know it too.
        ("/v1/guard/flags", "/v", "/v1/guard/flags"),
        ("/console/flags", "/con", "/console/flags"),
    ],
)
def test_the_path_below_a_mount_is_starlettes(path: str, root_path: str, below: str) -> None:
    scope = {"path": path, "root_path": root_path}
    assert path_of(scope) == get_route_path(scope) == below
