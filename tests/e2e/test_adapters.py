"""Adapters in a real server: swapped, used by the refine loop, refused, kept after a restart."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.adapter_config import WEIGHTS
from guard.adapter_files import adapter_path
from guard.prompts import CritiqueStyle
from guard.store import migrate
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from server.routes.model_access import TOKEN_HEADER
from tests.adapters import activate, publish, train_nothing
from tests.e2e.conftest import SETBACK, Server, read_metric, running_server
from tests.e2e.refine_access import refine_headers

pytestmark = pytest.mark.e2e

REQUEST = [{"role": "user", "content": "Can you help me press white flowers?"}]
PASS_ALL = '[default]\nthreshold = 1.0\naction = "pass"\n'
COMPUTED = 'setback_critique_tokens_total{source="computed"'
SWAP_S = 60

Start = Callable[[], AbstractContextManager[Server]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the database, the policy and the adapters."""
    path = tmp_path_factory.mktemp("adapters")
    (path / "policy.toml").write_text(PASS_ALL)
    migrate.upgrade(parse_url(f"sqlite:///{path}/flags.db"))
    return path


@pytest.fixture(scope="module")
def start(folder: Path) -> Start:
    """Starts a server that passes everything, so that answers can be compared."""
    options = ["--adapters-dir", str(folder / "adapters"), "--adapter-poll-s", "0.1"]
    options += ["--policy-file", str(folder / "policy.toml")]

    def command(port: int) -> list[str]:
        return [SETBACK, "serve", "practice", "--port", str(port), *options]

    return lambda: running_server(folder, f"sqlite:///{folder}/flags.db", command)


@pytest.fixture(scope="module")
def swapping(start: Start) -> Iterator[Server]:
    with start() as server:
        yield server


@pytest.fixture(scope="module")
def model_access(swapping: Server) -> Iterator[httpx.Client]:
    """A client of the refine routes."""
    with refine_client(swapping) as client:
        yield client


def refine_client(server: Server) -> httpx.Client:
    headers = asyncio.run(refine_headers(server))
    return httpx.Client(base_url=f"{server.base_url}/v1/guard/refine", headers=headers, timeout=120)


@pytest.fixture(scope="module")
def versions(folder: Path, swapping: Server, model_access: httpx.Client) -> list[int]:
    """Three registered adapters with different weights."""
    revision = model_access.get("/model").json()["model_revision"]
    trained = [train_nothing(folder / f"trained-{seed}", seed) for seed in (1, 3, 4)]

    async def published() -> list[int]:
        adapters = folder / "adapters"
        return [await publish(swapping.database, adapters, path, revision) for path in trained]

    return asyncio.run(published())


def ask(server: Server, max_tokens: int = 24) -> tuple[str, str]:
    """Returns the adapter that answered, and its answer."""
    body = {"model": MODEL_NAME, "messages": REQUEST, "temperature": 0, "max_tokens": max_tokens}
    with server.http() as http:
        response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    content = response.json()["choices"][0]["message"]["content"]
    return response.headers["x-setback-adapter"], content


def swap(server: Server, version: int | None, name: str) -> None:
    """Activates an adapter and waits until the server answers with it."""
    asyncio.run(activate(server.database, version))
    deadline = time.monotonic() + SWAP_S
    while time.monotonic() < deadline:
        if ask(server)[0] == name:
            return
    pytest.fail(f"the server did not swap to {name}:\n{server.log.read_text()[-4000:]}")


def lent(model_access: httpx.Client, path: str, **body: Any) -> Any:
    response = model_access.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def lent_answer(model_access: httpx.Client, adapter: str | int) -> Any:
    options = {"max_tokens": 24, "reminder": True}
    reply = lent(model_access, "/answers", adapter=adapter, conversations=[REQUEST], **options)
    return reply["adapter"], reply["answers"][0]


def a_version_that_is_sure(server: Server, model_access: httpx.Client, folder: Path) -> int:
    """An adapter in the label style that is sure its own answer is harmless: one read."""
    revision = model_access.get("/model").json()["model_revision"]
    for seed in range(9, 25):
        trained = train_nothing(folder / f"trained-{seed}", seed)
        adapters = folder / "adapters"
        version = asyncio.run(
            publish(server.database, adapters, trained, revision, CritiqueStyle.LABEL)
        )
        about = {"adapter": version, "conversations": [REQUEST]}
        (answer,) = model_access.post("/answers", json={**about, "max_tokens": 8}).json()["answers"]
        judged = [*REQUEST, {"role": "assistant", "content": answer}]
        reply = model_access.post("/verdicts", json={"adapter": version, "conversations": [judged]})
        if reply.json()["verdicts"][0]["harm"] < 0.04:
            return version
    raise AssertionError("no random adapter is sure")


def test_an_adapter_of_the_label_style_is_read_without_a_question(
    swapping: Server, versions: list[int], model_access: httpx.Client, folder: Path
) -> None:
    version = a_version_that_is_sure(swapping, model_access, folder)
    tokens = {}
    for number, style in ((versions[0], "yes_no"), (version, "label")):
        swap(swapping, number, f"setback-{number}")
        assert model_access.get("/model").json()["critique"] == style
        before = read_metric(swapping, COMPUTED)
        # Too short for doubt to have it judged in parts.
        ask(swapping, max_tokens=4)
        after = read_metric(swapping, COMPUTED)
        tokens[style] = after - before
    swap(swapping, None, "base")
    # The practice tokenizer spells the mark in letters; other models need three tokens.
    assert 0 < tokens["label"] <= 8 < tokens["yes_no"]


def test_a_promoted_adapter_answers_and_a_rollback_undoes_it(
    swapping: Server, versions: list[int], model_access: httpx.Client
) -> None:
    name, of_base = ask(swapping)
    assert name == "base"
    first, second, _ = versions
    swaps = read_metric(swapping, "setback_adapter_swaps_total")
    swap(swapping, first, f"setback-{first}")
    of_first = ask(swapping)[1]
    assert model_access.get("/model").json()["active"] == first
    swap(swapping, second, f"setback-{second}")
    of_second = ask(swapping)[1]
    assert len({of_base, of_first, of_second}) == 3
    assert read_metric(swapping, "setback_active_adapter") == second
    swap(swapping, None, "base")
    assert ask(swapping)[1] == of_base
    assert read_metric(swapping, "setback_adapter_swaps_total") == swaps + 3
    assert read_metric(swapping, "setback_active_adapter") == 0


def test_the_refine_routes_answer_as_each_adapter_would(
    swapping: Server, versions: list[int], model_access: httpx.Client
) -> None:
    first = versions[0]
    candidate = lent_answer(model_access, first)
    assert lent_answer(model_access, "active") == lent_answer(model_access, "base") == ask(swapping)
    assert candidate[0] == f"setback-{first}"
    assert model_access.delete(f"/adapters/{first}").status_code == 204
    swap(swapping, first, f"setback-{first}")
    assert ask(swapping) == lent_answer(model_access, "active") == candidate
    refused = model_access.delete(f"/adapters/{first}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_conflict")


def test_the_base_stays_the_base_with_as_many_adapters_loaded_as_there_can_be(
    swapping: Server, versions: list[int], model_access: httpx.Client
) -> None:
    swap(swapping, None, "base")
    of_base = ask(swapping)
    swap(swapping, versions[0], f"setback-{versions[0]}")
    answers = {lent_answer(model_access, version) for version in versions}
    assert len(answers) == 3
    # Beside requests on an adapter as well: they then share a batch.
    with ThreadPoolExecutor() as pool:
        mixed = list(
            pool.map(lambda name: lent_answer(model_access, name), [*versions, "base"] * 4)
        )
    assert lent_answer(model_access, "base") == of_base
    assert set(mixed) == {*answers, of_base}
    for version in versions[1:]:
        assert model_access.delete(f"/adapters/{version}").status_code == 204


def test_verdicts_come_from_the_adapter_that_is_asked(
    versions: list[int], model_access: httpx.Client
) -> None:
    answered = [[*REQUEST, {"role": "assistant", "content": "First, pick them on a dry day."}]]
    reads = {}
    for adapter in ("base", *versions):
        response = lent(model_access, "/verdicts", adapter=adapter, conversations=answered)
        reads[adapter] = response["verdicts"][0]["harm"]
    assert all(0 <= read <= 1 for read in reads.values())
    assert len(set(reads.values())) == len(reads), reads
    texts = lent(model_access, "/verdicts", adapter="base", texts=["Hello."], categories=True)
    scores = texts["verdicts"][0]["category_scores"]
    assert sum(scores.values()) == pytest.approx(texts["verdicts"][0]["harm"])


def test_moderations_are_judged_by_the_active_adapter(
    swapping: Server, versions: list[int]
) -> None:
    scores = []
    for version, name in ((versions[0], f"setback-{versions[0]}"), (None, "base")):
        swap(swapping, version, name)
        with swapping.http() as http:
            response = http.post("/v1/moderations", json={"input": "Hello."})
        assert response.headers["x-setback-adapter"] == name
        scores.append(response.json()["results"][0]["category_scores"])
    assert scores[0] != scores[1]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "message"),
    [
        ("/answers", {"adapter": 999}, 404, "adapter_unknown", "no adapter 999"),
        ("/answers", {"adapter": "newest"}, 400, "invalid_value", "adapter"),
        ("/answers", {"adapter": 0}, 400, "invalid_value", "adapter"),
        ("/answers", {"conversations": []}, 400, "invalid_value", "conversations"),
        ("/answers", {"conversations": [REQUEST] * 257}, 400, "invalid_value", "256"),
        (
            "/answers",
            {"conversations": [REQUEST, [{"role": "user", "content": "flower " * 2000}]]},
            400,
            "context_length_exceeded",
            "conversations.1 ",
        ),
        ("/verdicts", {"texts": ["a"]}, 400, "invalid_value", "either"),
        ("/verdicts", {}, 400, "invalid_value", "conversations.0 must end with"),
    ],
)
def test_wrong_refine_requests_are_named(
    model_access: httpx.Client,
    path: str,
    body: dict[str, Any],
    status: int,
    code: str,
    message: str,
) -> None:
    usual: dict[str, Any] = {"adapter": "base", "conversations": [REQUEST]}
    if path == "/answers":
        usual["max_tokens"] = 4
    response = model_access.post(path, json=usual | body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert message in error["message"]


@pytest.mark.parametrize("token", ["", "wrong", "\xe9"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "model"), ("POST", "answers"), ("POST", "verdicts"), ("DELETE", "adapters/1")],
)
def test_without_the_token_the_model_is_not_accessible(
    swapping: Server, method: str, path: str, token: str
) -> None:
    headers = {TOKEN_HEADER.encode(): token.encode("latin-1")}
    with swapping.http() as http:
        response = http.request(
            method, f"/v1/guard/refine/{path}", headers=headers, json={"adapter": "base"}
        )
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_refine_token"


def test_a_spoiled_adapter_is_refused_and_after_a_restart_the_last_good_one_serves(
    start: Start, folder: Path, swapping: Server, versions: list[int], model_access: httpx.Client
) -> None:
    first, second, _ = versions
    swap(swapping, first, f"setback-{first}")
    of_first = ask(swapping)
    weights = adapter_path(folder / "adapters", second) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    asyncio.run(activate(swapping.database, second))
    deadline = time.monotonic() + SWAP_S
    while read_metric(swapping, "setback_adapter_refusals_total") < 1:
        assert time.monotonic() < deadline
        assert ask(swapping) == of_first
    assert model_access.delete(f"/adapters/{second}").status_code == 204
    refused = model_access.post(
        "/answers", json={"adapter": second, "conversations": [REQUEST], "max_tokens": 1}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_refused")
    adapter = f"Adapter {second} in {adapter_path(folder / 'adapters', second)}"
    assert f"{adapter}: {WEIGHTS} was altered" in swapping.log.read_text()
    with start() as again:
        assert ask(again) == of_first
        assert f"{adapter}: {WEIGHTS} was altered" in again.log.read_text()
