"""A LiteLLM proxy in a process of its own, by its configuration. Owns its start and its end."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

from tests.e2e.conftest import Server, wait_until_ready
from tests.e2e.other_clients import LITELLM_OFFLINE, client_python
from tests.ports import free_port

_ALIVE = "/health/liveliness"


@contextmanager
def running_proxy(folder: Path, config: str, server: Server) -> Iterator[openai.OpenAI]:
    """Yields OpenAI's client of the proxy. server: the one that the configuration names."""
    file, log, port = folder / "config.yaml", folder / "proxy.log", free_port()
    file.write_text(config)
    # It does not start without a key that is hard to guess.
    key = f"sk-{secrets.token_urlsafe(24)}"
    program = str(client_python().with_name("litellm"))
    command = [program, "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **LITELLM_OFFLINE, "LITELLM_MASTER_KEY": key},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(Server(url, server.database, log, process.pid), process, _ALIVE)
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=300) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)
