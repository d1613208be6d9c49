"""Webhooks: every event once it is settled, in order, signed, and again until it is taken."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import httpx
import pytest
from sqlalchemy import URL

from guard.errors import LeaseHeld
from guard.store.adapters import AdapterStore
from guard.store.flags import Flag, FlagStore
from guard.store.leases import Leases
from guard.store.policies import PolicyStore
from guard.store.review import Filter, ReviewStore
from guard.store.rollouts import RolloutStore
from guard.store.runs import RunStore
from guard.store.webhooks import EVENT_TYPES, WebhookStore
from server.jobs.webhook_signature import check_secret
from server.jobs.webhooks import Receiver, Webhooks
from tests.guard.store.test_runs import begin

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@dataclass
class Taker:
    """A receiver that may be down."""

    taken: list[httpx.Request] = field(default_factory=list)
    down: bool = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            return httpx.Response(503)
        self.taken.append(request)
        return httpx.Response(204)

    @property
    def types(self) -> list[str]:
        return [json.loads(request.content)["type"] for request in self.taken]


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
async def webhooks(database: URL, taker: Taker) -> AsyncIterator[Webhooks]:
    store, leases = WebhookStore(database), Leases(database)
    async with httpx.AsyncClient(transport=httpx.MockTransport(taker)) as http:
        receiver = Receiver("https://example.org/hook", SECRET, EVENT_TYPES)
        yield Webhooks(receiver, store, leases, http)
    await store.close()
    await leases.close()


async def test_what_happens_is_sent_once_and_signed(
    webhooks: Webhooks, taker: Taker, database: URL, store: FlagStore, flag: Flag
) -> None:
    runs, adapters, policies = RunStore(database), AdapterStore(database), PolicyStore(database)
    rollouts = RolloutStore(database)
    await store.add(flag)
    await webhooks.deliver()
    assert not taker.taken, "what happened before is not sent"
    number = await store.add(flag)
    run = await begin(runs)
    await webhooks.deliver()
    assert taker.types == ["flag.created"]
    await runs.finish(run.id, "promoted", reasons=["better"])
    await adapters.register(version=run.id, parent=None, model_revision="r", sha256="0" * 64)
    await adapters.activate(run.id, by="ada", reason="why")
    other = await begin(runs)
    await adapters.register(version=other.id, parent=None, model_revision="r", sha256="1" * 64)
    await rollouts.start(other.id, share=0.1, by="ada", reason="")
    await rollouts.stop(by="ada", reason="why")
    await policies.activate("", by="ada")
    await webhooks.deliver()
    await webhooks.deliver()
    assert taker.types == list(EVENT_TYPES)
    request = taker.taken[0]
    content, headers = json.loads(request.content), request.headers
    assert content["data"] == {
        **{name: getattr(flag, name) for name in ("request_id", "route", "harm", "adapter")},
        "id": number,
        "action": "block",
        "categories": list(flag.categories),
        "place": "output",
        "policy_hash": flag.policy_hash,
    }
    assert flag.answer.encode() not in request.content
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.content
    digest = base64.b64encode(hmac.digest(b"k" * 32, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert json.loads(taker.taken[1].content)["data"]["status"] == "promoted"
    for opened in (runs, adapters, policies, rollouts):
        await opened.close()


async def test_what_is_not_taken_is_sent_again_in_order(
    webhooks: Webhooks, taker: Taker, store: FlagStore, flag: Flag
) -> None:
    await webhooks.deliver()
    taker.down = True
    for _ in range(2):
        await store.add(flag)
    for _ in range(2):
        with pytest.raises(httpx.HTTPStatusError):
            await webhooks.deliver()
    taker.down = False
    await webhooks.deliver()
    ids = [request.headers["webhook-id"] for request in taker.taken]
    assert ids == ["flag.created-1", "flag.created-2"]


async def test_only_wanted_events_are_sent(
    webhooks: Webhooks, taker: Taker, store: FlagStore, flag: Flag
) -> None:
    webhooks._receiver = replace(
        webhooks._receiver, types=("flag.created",), categories=("self-harm",)
    )
    await webhooks.deliver()
    await store.add(flag)
    await store.add(replace(flag, categories=("self-harm", "violence")))
    await webhooks.deliver()
    assert [json.loads(one.content)["data"]["id"] for one in taker.taken] == [2]


async def test_one_process_delivers(webhooks: Webhooks, database: URL) -> None:
    await webhooks.deliver()
    other = Leases(database)
    with pytest.raises(LeaseHeld):
        await other.acquire("webhooks", "another", 1)
    await other.close()


async def test_a_flag_waits_for_one_that_may_be_committed_before_it(
    webhooks: Webhooks, taker: Taker, store: FlagStore, flag: Flag, database: URL
) -> None:
    await webhooks.deliver()
    await store.add(replace(flag, user_hash="ab"))
    await store.add(flag)
    events = WebhookStore(database)
    first, second = await events.pending("flag.created", 9)
    await events.close()
    assert (first.number, second.number) == (1, 2)
    reviews = ReviewStore(database)
    await reviews.delete(Filter(user_hash="ab"), "ada")
    await reviews.close()
    await webhooks.deliver()
    assert not taker.taken


@pytest.mark.parametrize("secret", ["", "secret", "whsec_!", "whsec_c2hvcnQ="])
def test_a_secret_has_the_specifications_form(secret: str) -> None:
    with pytest.raises(ValueError, match="openssl rand"):
        check_secret(secret)
    assert check_secret(SECRET) == SECRET
