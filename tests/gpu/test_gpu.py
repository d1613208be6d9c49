"""What is different on a GPU: vLLM's asynchronous scheduling and kernels, with critiques that are
requests and critiques in the answers' own sessions."""

import asyncio
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from guard.store.migrate import upgrade
from guard.store.url import parse_url
from guard.vllm.private import PIECES, difference
from guard.vllm.session import ASYNC_SCHEDULER
from tests.adapters import activate, publish
from tests.e2e.conftest import BLOCK_ALL, SETBACK, Server, running_server
from tests.e2e.refine_access import model_revision
from tests.gpu.model import Size, write_adapter, write_model

SIZE = Size(512, 1024, 4, 8, 4, 2048)
MESSAGES: Any = [{"role": "user", "content": "How do I water a fern?"}]


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU"),
]


@pytest.fixture(scope="module", params=[(), ("--scheduler-cls", ASYNC_SCHEDULER)], ids=len)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that withholds every answer."""
    folder = tmp_path_factory.mktemp("gpu")
    model = write_model(folder / "model", SIZE)
    (folder / "policy.toml").write_text(BLOCK_ALL)
    database = f"sqlite:///{folder}/flags.db"
    upgrade(parse_url(database))
    command = [SETBACK, "serve", str(model), "--served-model-name", "random"]
    command += ["--gpu-memory-utilization", "0.2", "--policy-file", str(folder / "policy.toml")]
    command += ["--adapters-dir", str(folder / "adapters"), "--adapter-poll-s", "0.2"]
    command += request.param
    with running_server(folder, database, lambda port: [*command, "--port", str(port)]) as it:
        yield it


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.path)
def test_a_private_piece_is_as_listed(piece: Any) -> None:
    if not piece.only_on_cpu:
        assert list(difference(piece)) == []


def test_a_flagged_answer_is_withheld(server: Server) -> None:
    with server.openai() as client:
        answer = client.chat.completions.create(model="random", messages=MESSAGES, max_tokens=40)
    assert answer.choices[0].finish_reason == "content_filter"


def test_a_flagged_stream_is_withheld(server: Server) -> None:
    with server.openai() as client:
        chunks = list(
            client.chat.completions.create(
                model="random", messages=MESSAGES, max_tokens=40, stream=True
            )
        )
    assert chunks[-1].choices[0].finish_reason == "content_filter"


def test_an_adapter_is_swapped_in(server: Server) -> None:
    folder = server.log.parent

    async def swap() -> int:
        trained = write_adapter(folder / "trained", SIZE, seed=1)
        revision = await model_revision(server)
        version = await publish(server.database, folder / "adapters", trained, revision)
        await activate(server.database, version)
        return version

    version = asyncio.run(swap())
    body = {"model": "random", "messages": MESSAGES, "max_tokens": 8}
    with server.http() as http:
        for _ in range(600):
            answer = http.post("/v1/chat/completions", json=body).raise_for_status()
            if answer.headers["x-setback-adapter"] == f"setback-{version}":
                return
    pytest.fail("the adapter never answered")
