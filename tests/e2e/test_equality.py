"""Greedy answers that are not flagged equal bare vLLM's, byte by byte, plain and streamed.

Only when pytest is called with `--full`, because it starts two more servers.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.store import migrate
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from refine.practice.world import Kind, requests
from tests.e2e.conftest import SETBACK, Server, running_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a word up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
        },
    }
]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"tools": TOOLS, "tool_choice": "auto"},
    {"stop": [".", "and"]},
    {"n": 3, "temperature": 1, "top_k": 1},
]
EACH = 50
"""Requests of each variant, plain and once more streamed: 500 in all."""

_BARE = "import sys; from server.bench.measure import serve_bare; serve_bare(sys.argv[1:])"


@pytest.fixture
def at_length(full: bool) -> None:
    if not full:
        pytest.skip("needs --full")


@pytest.fixture
def unreminded(at_length: None, tmp_path: Path) -> Iterator[Server]:
    """Guarded, without the reminder, which changes the prompt."""
    database = f"sqlite:///{tmp_path}/flags.db"
    migrate.upgrade(parse_url(database))
    options = ["--reminder", "false"]
    with running_server(
        tmp_path,
        database,
        lambda port: [SETBACK, "serve", "practice", "--port", str(port), *options],
    ) as it:
        yield it


@pytest.fixture
def bare(at_length: None, tmp_path: Path) -> Iterator[httpx.Client]:
    """vLLM alone, without plugins."""
    folder = tmp_path / "bare"
    folder.mkdir()
    with (
        running_server(
            folder,
            f"sqlite:///{folder}/none.db",
            lambda port: [
                *("env", "VLLM_PLUGINS="),
                *(sys.executable, "-c", _BARE, "--port", str(port)),
            ],
            ready="/health",
        ) as it,
        it.http() as http,
    ):
        yield http


def received(body: str, stream: bool) -> list[Any]:
    """Returns all that a client receives except ids, times and the guard's field; deltas joined."""
    if not stream:
        answer = json.loads(body)
        return [answer["choices"], answer["usage"]]
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    joined: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        entry = joined.setdefault(choice["index"], {"content": "", "logprobs": [], "tools": {}})
        entry["content"] += choice["delta"].get("content") or ""
        for called in choice["delta"].get("tool_calls") or []:
            function = called["function"]
            text = (function.get("name") or "") + (function.get("arguments") or "")
            entry["tools"][called["index"]] = entry["tools"].get(called["index"], "") + text
        entry["logprobs"] += (choice.get("logprobs") or {}).get("content") or []
        entry["finish_reason"] = choice["finish_reason"]
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return [sorted(joined.items()), usage]


def rounded(value: Any) -> Any:
    """Removes identifiers, and rounds log-probabilities to three digits."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items() if k not in ("id", "prompt_tokens_details")}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def test_answers_are_bare_vllm_s(
    bare: httpx.Client, unreminded: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    everyday = requests(Kind.EVERYDAY, "held-out", EACH * len(VARIANTS))
    compared, differing = 0, []
    with unreminded.http() as guarded:
        for number, request in enumerate(everyday):
            variant = VARIANTS[number % len(VARIANTS)]
            for stream in (False, True):
                body = {
                    "model": MODEL_NAME, "messages": list(request.messages), "temperature": 0,
                    "max_tokens": 96, "stream": stream, **variant,
                }  # fmt: skip
                body |= {"stream_options": {"include_usage": True}} if stream else {}
                one, other = (
                    http.post("/v1/chat/completions", json=body) for http in (bare, guarded)
                )
                assert one.status_code == other.status_code == 200, (one.text, other.text)
                if '"moderation"' in other.text:
                    continue
                compared += 1
                mine, theirs = (
                    rounded(received(response.text, stream)) for response in (other, one)
                )
                if mine != theirs:
                    differing.append((body, mine, theirs))
    with capsys.disabled():
        print(f"\n{compared} answers compared, {len(differing)} differ")  # noqa: T201
    assert compared >= 0.8 * EACH * len(VARIANTS) * 2
    assert not differing, differing[0]
