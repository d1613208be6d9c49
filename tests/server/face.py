"""All our HTTP routes over a real database, without vLLM's and without an engine."""

import os
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, get_args

import httpx
from fastapi import FastAPI
from sqlalchemy import URL
from starlette.datastructures import State

from guard.calibrations import Calibrations
from guard.policies import Policies
from guard.policy import Action
from guard.store.adapters import AdapterStore
from guard.store.audit import AuditStore
from guard.store.calibrations import CalibrationStore
from guard.store.flags import Flag, FlagStore
from guard.store.keys import KeyStore, Role
from guard.store.leases import Leases
from guard.store.policies import PolicyStore
from guard.store.replicas import ReplicaStore
from guard.store.review import Label, ReviewStore
from guard.store.rollouts import RolloutStore
from guard.store.runs import RunStatus, RunStore
from guard.store.text import storable
from guard.store.traffic import Traffic, TrafficStore
from server.auth.access import Access, AccessMiddleware
from server.auth.sessions import Sessions
from server.jobs.rollout_decision import Margins
from server.jobs.run_control import RunControl
from server.launch.plugin import GuardPlugin
from server.launch.policy_reload import PolicySource

BASE_URL = "http://127.0.0.1:8000"
STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
"""fill() makes a run and an adapter of each, numbered in this order from 1."""

_TEXTS = (
    *("request_id", "route", "answer", "revision", "user_hash", "adapter"),
    *("model", "model_revision", "policy_hash", "prompt_version"),
)


@dataclass(frozen=True)
class Face:
    """The application and its stores."""

    app: FastAPI
    flags: FlagStore
    reviews: ReviewStore
    runs: RunStore
    registry: AdapterStore
    leases: Leases
    audit: AuditStore
    keys: KeyStore
    traffic: TrafficStore
    access: Access
    control: RunControl

    async def key(self, role: Role, name: str = "anna") -> str:
        """Makes a key that the server knows, and returns its secret."""
        _, secret = await self.keys.make(name, role, by="ada")
        await self.access.refresh()
        return secret

    def client(self, base_url: str = BASE_URL, root_path: str = "") -> httpx.AsyncClient:
        """A client that follows no redirects and raises the application's exceptions."""
        transport: Any = httpx.ASGITransport(self.app, root_path=root_path)
        return httpx.AsyncClient(transport=transport, base_url=base_url)

    @asynccontextmanager
    async def browser(self, role: Role, name: str = "anna") -> AsyncIterator[httpx.AsyncClient]:
        """A logged-in client."""
        async with self.client() as client:
            form = {"key": await self.key(role, name)}
            assert (await client.post("/console/login", data=form)).status_code == 303
            yield client


@cache
def _wired_app() -> FastAPI:
    """Our routes and error handlers. FastAPI takes a tenth of a second to read the routes."""
    app = FastAPI()
    app.state.args = Namespace(middleware=[])
    GuardPlugin().attach_router(app)
    return app


@asynccontextmanager
async def open_face(
    url: URL,
    *,
    job: Sequence[str] = ("false",),
    environment: Mapping[str, str] = os.environ,
    local: bool = True,
    api_key: bool = False,
) -> AsyncIterator[Face]:
    """Our routes over the migrated database at `url`; `job` is the command that starts a run."""
    runs, registry, leases, audit = RunStore(url), AdapterStore(url), Leases(url), AuditStore(url)
    flags, reviews, traffic = FlagStore(url), ReviewStore(url), TrafficStore(url)
    keys, fits, policies = KeyStore(url), CalibrationStore(url), PolicyStore(url)
    rollouts = RolloutStore(url)
    source, replicas = PolicySource(None, policies), ReplicaStore(url)
    calibrations = Calibrations(fits, "rev", lambda: None)
    await calibrations.refresh()
    access = Access(keys, local=local, api_key=api_key)
    control = RunControl(job, environment, runs=runs, adapters=registry, leases=leases, audit=audit)
    app = FastAPI()
    app.router.routes = [*_wired_app().routes]
    app.exception_handlers |= _wired_app().exception_handlers
    app.add_middleware(AccessMiddleware)
    state = SimpleNamespace(
        access=access,
        sessions=Sessions(await flags.console_secret()),
        reviews=reviews,
        runs=runs,
        registry=registry,
        calibrations=calibrations,
        control=control,
        traffic=traffic,
        replicas=replicas,
        rollout_store=rollouts,
        rollout_margins=Margins(),
        policies=Policies(await source.load()),
        policy_store=policies,
        policy_source=source,
    )
    app.state = State({"setback": state})
    try:
        yield Face(
            app, flags, reviews, runs, registry, leases, audit, keys, traffic, access, control
        )
    finally:
        stores = (flags, reviews, runs, registry, leases, audit, keys, traffic, fits, policies)
        for store in (*stores, replicas, rollouts):
            await store.close()


async def fill(face: Face, flag: Flag, text: str) -> None:
    """Adds something of every kind that a page shows, with `text` as every untrusted text."""
    for action in Action:
        number = await face.flags.add(_odd(replace(flag, action=action), text))
    label = Label(review="confirmed", category="hate", answer=text, note=text)
    await face.reviews.label([number], label, text)
    for status in STATUSES:
        await _run(face, status, text)
    await face.registry.set_status(STATUSES.index("rejected") + 1, "rejected")
    for version in (2, 1):
        await face.registry.activate(version, by=text, reason=text)
    rollouts = face.app.state.setback.rollout_store
    await rollouts.start(4, share=0.1, by=text, reason=text)
    await rollouts.stop(by=text, reason=text)
    await face.app.state.setback.policy_store.activate(text, by=text)
    await face.traffic.add(flag.created_at, Traffic(10, 3, 8, 1.5))


def _odd(flag: Flag, text: str) -> Flag:
    texts: Any = dict.fromkeys(_TEXTS, text)
    return replace(
        flag,
        messages=[{"role": text, "content": text}, {"role": "user", "content": text}],
        categories=(text, *flag.categories),
        category_scores={text: 0.9, **flag.category_scores},
        **texts,
    )


async def _run(face: Face, status: RunStatus, text: str) -> None:
    stored = storable(text)
    run = await face.runs.start(
        model=text, model_revision=stored, parent=None, seed=0, options={text: text}
    )
    await face.registry.register(version=run.id, parent=None, model_revision=stored, sha256=stored)
    await face.runs.set_flags(run.id, {1: "train", 2: "held_out"})
    await face.runs.set_stage(run.id, "gate", counts={text: 3}, dataset_sha256=stored)
    if status == "running":
        await face.runs.cancel(run.id, by=text)
        return
    figure = {"name": text, "share": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    measures = {"active": {"figures": [figure]}, "candidate": {"figures": [figure]}}
    await face.runs.finish(
        run.id, status, measures=measures, reasons=[text, f"FAILS {text}"], error=text
    )
