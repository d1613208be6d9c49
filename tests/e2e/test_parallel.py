"""vLLM's data and tensor parallelism: every engine is guarded, and an adapter swapped in all."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from guard.store import migrate
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from tests.adapters import activate, publish, train_nothing
from tests.e2e.conftest import BLOCK_ALL, SETBACK, Server, read_metric, running_server
from tests.e2e.refine_access import model_revision

pytestmark = [pytest.mark.e2e, pytest.mark.full]

WAYS: Mapping[str, Mapping[str, str]] = {
    "data": {},
    # vLLM binds the threads of several workers by itself only where there are several NUMA nodes.
    "tensor": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
}
REQUESTS = 24
SWAPPED_S = 60.0


@pytest.fixture(scope="module", params=WAYS)
def parallel(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "policy.toml").write_text(BLOCK_ALL)
    migrate.upgrade(parse_url(f"sqlite:///{folder}/flags.db"))
    options = [f"--{request.param}-parallel-size", "2", "--adapters-dir", str(folder / "adapters")]
    options += ["--policy-file", str(folder / "policy.toml")]
    with running_server(
        folder,
        f"sqlite:///{folder}/flags.db",
        lambda port: [SETBACK, "serve", "practice", "--port", str(port), *options],
        environment=WAYS[request.param],
    ) as server:
        yield server


async def answers(server: Server) -> Counter[tuple[str | None, str | None]]:
    """Returns how many of some requests at once came from which adapter and ended how."""

    async def ask(number: int) -> tuple[str | None, str | None]:
        got: Any = await client.chat.completions.with_raw_response.create(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": f"How do I water {number} roses?"}],
            max_tokens=24,
        )
        return got.headers.get("x-setback-adapter"), got.parse().choices[0].finish_reason

    async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none") as client:
        return Counter(await asyncio.gather(*map(ask, range(REQUESTS))))


def served(server: Server) -> set[int | None]:
    """Returns the adapters that the API processes serve."""
    replicas = httpx.get(f"{server.base_url}/v1/guard/replicas").json()["data"]
    return {replica["adapter"] for replica in replicas}


def test_all_engines_are_guarded_and_swap(parallel: Server) -> None:
    assert asyncio.run(answers(parallel)) == {("base", "content_filter"): REQUESTS}
    folder = parallel.log.parent
    revision = asyncio.run(model_revision(parallel))
    trained = train_nothing(folder / "trained", seed=3)
    version = asyncio.run(publish(parallel.database, folder / "adapters", Path(trained), revision))
    asyncio.run(activate(parallel.database, version))
    deadline = time.monotonic() + SWAPPED_S
    while served(parallel) != {version}:
        assert time.monotonic() < deadline
    adapter = f"setback-{version}"
    assert asyncio.run(answers(parallel)) == {(adapter, "content_filter"): REQUESTS}
    with parallel.http() as http:
        flags = http.get("/v1/guard/flags", params={"limit": 100}).json()["data"]
        assert Counter(flag["adapter"] for flag in flags) == {"base": REQUESTS, adapter: REQUESTS}
    assert read_metric(parallel, "setback_flags_written_total") == 2 * REQUESTS
