"""vLLM's own server, started without `setback serve`: the plugin alone guards it, or it ends."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from guard.store import migrate
from guard.store.url import parse_url
from refine.practice.recipe import MODEL_DIR
from tests.e2e.conftest import BLOCK_ALL, SETBACK, Server, running_server

pytestmark = pytest.mark.e2e

VLLM = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
OPTIONS = ["--model", str(MODEL_DIR), "--served-model-name", "practice", "--host", "127.0.0.1"]
OPTIONS += ["--kv-cache-memory-bytes", "256M", "--enforce-eager", "--dtype", "float32"]
GUARD_OPTIONS = ["--scheduling-policy", "priority", "--enable-lora", "--max-loras", "3"]
REQUEST: Any = {
    "model": "practice",
    "messages": [{"role": "user", "content": "How do I harm the garden gnome?"}],
    "max_tokens": 12,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "policy.toml").write_text(BLOCK_ALL)
    database = f"sqlite:///{folder}/flags.db"
    migrate.upgrade(parse_url(database))
    environment = {
        "VLLM_PLUGINS": "setback,setback_cpu",
        "SETBACK_POLICY_FILE": str(folder / "policy.toml"),
        "SETBACK_ADAPTERS_DIR": str(folder / "adapters"),
    }
    with running_server(
        folder,
        database,
        lambda port: [*VLLM, *OPTIONS, *GUARD_OPTIONS, "--port", str(port)],
        environment=environment,
    ) as server:
        yield server


def test_a_flagged_answer_is_withheld_and_stored(plain: Server) -> None:
    client = plain.openai()
    answer = client.chat.completions.create(**REQUEST)
    assert answer.choices[0].finish_reason == "content_filter"
    streamed = client.chat.completions.create(**REQUEST, stream=True)
    reasons = [chunk.choices[0].finish_reason for chunk in streamed if chunk.choices]
    assert reasons[-1] == "content_filter"
    with plain.http() as http:
        flags = http.get("/v1/guard/flags").json()["data"]
        assert answer.id in {flag["request_id"] for flag in flags}
        # vLLM's own routes that would give out unguarded answers or the model's state.
        assert http.post("/tokenize", json={"prompt": "gnome"}).status_code in (200, 404)
        assert http.post("/load_lora_adapter", json={}).status_code == 404


def test_keys_are_checked(plain: Server) -> None:
    environment = {**os.environ, "DATABASE_URL": plain.database.render_as_string(False)}
    created = subprocess.run(
        [SETBACK, "keys", "make", "a tenant", "--role", "call"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    secret = created.stdout.split()[-1]

    def refused() -> bool:
        try:
            plain.openai().models.list()
        except openai.AuthenticationError:
            return True
        return False

    # Each process reads the keys again every two seconds.
    while not refused():
        time.sleep(0.1)
    with plain.http() as http:
        models = http.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert models.status_code == 200


def test_a_server_that_was_meant_to_be_guarded_does_not_start_without(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"}
    done = subprocess.run(
        [*VLLM, *OPTIONS],
        env={**environment, "SETBACK_STREAM_MODE": "buffer"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "VLLM_PLUGINS=setback" in done.stderr
