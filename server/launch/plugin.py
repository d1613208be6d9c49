"""The vLLM endpoint plugin. In each API-server process it closes routes, adds ours and puts the
guard in front of the engine. Owns this wiring only. guarded_handlers.py checks at start-up that it
happened.
"""

import asyncio
import logging
from argparse import Namespace
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import State
from starlette.exceptions import HTTPException as StarletteHTTPException
from vllm.renderers.chat_utils import load_chat_template

from guard.adapters import Adapters
from guard.calibrations import Calibrations
from guard.engine import GuardedEngine
from guard.errors import GuardError, StoreUnavailable
from guard.policies import Policies
from guard.prompts import CritiqueStyle
from guard.recorder import Recorder
from guard.redact import Redactor
from guard.rollouts import Rollouts
from guard.store.adapters import AdapterStore
from guard.store.audit import AuditStore
from guard.store.calibrations import CalibrationStore
from guard.store.database import connect
from guard.store.flags import FlagStore
from guard.store.keys import KeyStore
from guard.store.leases import Leases
from guard.store.policies import PolicyStore
from guard.store.replicas import ReplicaStore
from guard.store.review import ReviewStore
from guard.store.rollouts import RolloutStore
from guard.store.runs import RunStore
from guard.store.traffic import TrafficStore
from guard.store.usage import UsageStore
from guard.store.webhooks import WebhookStore
from guard.tasks import spawn
from guard.vllm.cpu.backend import require_installed
from server.auth.access import Access, is_local
from server.auth.limits import Limits
from server.auth.sessions import Sessions
from server.console import flag_pages, login, loop_pages, policy_page, traffic_page
from server.console.view import on_refused
from server.errors import (
    BadRequest,
    error_response,
    guard_error_response,
    on_bad_request,
    on_guard_error,
)
from server.jobs.child import job_command, job_environment
from server.jobs.replica_reports import report_regularly
from server.jobs.retention import delete_expired
from server.jobs.rollout_decision import margins_of
from server.jobs.rollouts import RolloutDecisions
from server.jobs.run_control import RunControl
from server.jobs.run_watch import watch_runs
from server.jobs.webhooks import Webhooks, receiver_of
from server.launch.guarded_handlers import install_guard
from server.launch.policy_reload import PolicySource
from server.launch.served_engine import ServedEngine, guard_options
from server.launch.state import GuardState
from server.launch.vllm_options import add_middlewares, check_access, check_options
from server.routes import flags as flag_routes
from server.routes import guardrail, models, moderations, replicas
from server.routes import loop as loop_routes
from server.routes import model_access as refine_routes
from server.routes import policies as policy_routes
from server.routes import rollouts as rollout_routes
from server.routes.guardrail import Guardrail
from server.routes.moderations import Moderator
from server.routes.open import close_other_routes
from server.settings import Settings, load_settings
from server.telemetry import logs, traces
from server.telemetry.metrics import set_build_info
from server.telemetry.traffic_counts import CountingObserver

_READY_TIMEOUT_S = 2.0
_log = logging.getLogger("vllm.setback")

_ROUTES = (
    models,
    moderations,
    guardrail,
    refine_routes,
    flag_routes,
    loop_routes,
    rollout_routes,
    policy_routes,
    replicas,
    login,
    flag_pages,
    loop_pages,
    traffic_page,
    policy_page,
)

router = APIRouter()


class GuardPlugin:
    """The entry point `setback` in the group vllm.endpoint_plugins."""

    name = "setback"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds our routes, error handlers and middlewares, and closes all routes not known to be
        safe."""
        add_middlewares(app.state.args)
        for api_router in (router, *(module.router for module in _ROUTES)):
            app.include_router(api_router)
        app.add_exception_handler(GuardError, on_guard_error)
        app.add_exception_handler(BadRequest, on_bad_request)
        app.add_exception_handler(StarletteHTTPException, on_refused)
        closed = close_other_routes(app, load_settings().open_routes)
        _log.info("Closed routes: %s", ", ".join(closed))

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Builds the guard around `engine_client` and installs it in every handler. The active
        adapter is loaded before anything is served.

        Raises StoreUnavailable, PolicyInvalid, ModelUnusable, TemplateUnusable, UnguardedRoute, or
        Unsupported for vLLM's options. Each of them ends the process before it serves anything.
        """
        check_options(args)
        require_installed()
        settings = load_settings()
        logs.set_up(settings.log_format)
        traces.set_up()
        url = settings.database_url
        # One pool for all stores of this process.
        database = connect(url, pool_size=settings.database_pool_size)
        store = FlagStore(url, database)
        await store.check()
        served = ServedEngine(
            engine_client,
            [path.name for path in state.openai_serving_models.base_model_paths],
            load_chat_template(args.chat_template),
        )
        traffic = TrafficStore(url, database)
        observer = CountingObserver(traffic)
        registry = AdapterStore(url, database)
        limits = served.adapter_limits(
            settings.adapter_folder, settings.critique or CritiqueStyle.YES_NO
        )
        adapters = Adapters(engine_client, registry, limits, observer)
        await adapters.start()
        rollout_store = RolloutStore(url, database)
        rollouts, margins = Rollouts(adapters, rollout_store), margins_of(settings)
        await rollouts.refresh()
        calibrations = Calibrations(
            CalibrationStore(url, database), served.revision, lambda: adapters.active
        )
        await calibrations.refresh()
        policy_store = PolicyStore(url, database)
        policy_source = PolicySource(settings.policy_file, policy_store)
        policies = Policies(await policy_source.load())
        critic = served.critic(
            settings.critic_timeout_s, adapters, calibrations.of, policies.current.criteria
        )
        salt = await _salt(settings, store)
        access = Access(
            KeyStore(url, database),
            local=is_local(args),
            api_key=bool(args.api_key),
            public_url=settings.public_url,
        )
        await access.refresh()
        check_access(args, keys=access.has_keys)
        guarded = GuardedEngine(
            engine_client,
            rollouts=rollouts,
            critic=critic,
            chat_format=served.chat_format,
            policies=policies,
            recorder=Recorder(store, served.provenance(salt), _redactor(settings)),
            observer=observer,
            options=guard_options(settings, engine_client),
        )
        install_guard(state, engine_client, guarded)
        set_build_info(served.revision, policies.current.default.hash)
        state.setback = GuardState(
            moderator=Moderator(critic, served.chat_format, served.names),
            guardrail=Guardrail(critic, served.chat_format),
            critic=critic,
            chat_format=served.chat_format,
            adapters=adapters,
            calibrations=calibrations,
            model_access=served.model_access(adapters, await store.refine_token(), settings),
            access=access,
            limits=Limits(UsageStore(url, database)),
            policies=policies,
            policy_store=policy_store,
            policy_source=policy_source,
            replicas=ReplicaStore(url, database),
            reviews=ReviewStore(url, database),
            runs=RunStore(url, database),
            registry=registry,
            rollouts=rollouts,
            rollout_store=rollout_store,
            rollout_margins=margins,
            control=_run_control(args, registry, url, database),
            traffic=traffic,
            sessions=Sessions(await store.console_secret(), settings.public_url),
        )
        spawn(access.watch())
        spawn(observer.flush_regularly())
        spawn(watch_runs(state.setback.runs))
        spawn(report_regularly(state.setback.replicas, served.reporting(state.setback)))
        if settings.retention_days is not None:
            spawn(delete_expired(settings.retention_days, state.setback.reviews))
        spawn(state.setback.warm_up())
        receiver = receiver_of(settings)
        if receiver is not None:
            store_of_events, http = WebhookStore(url, database), httpx.AsyncClient()
            spawn(Webhooks(receiver, store_of_events, Leases(url, database), http).run())
        spawn(policy_source.watch(policies, critic))
        spawn(adapters.watch(settings.adapter_poll_s))
        spawn(rollouts.watch(settings.adapter_poll_s))
        leases = Leases(url, database)
        spawn(RolloutDecisions(rollout_store, registry, leases, margins).run())
        spawn(calibrations.watch(settings.adapter_poll_s))


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Answers 200 once this process has made a real critique and while flags can be stored."""
    guard: GuardState = request.app.state.setback
    if not guard.ready:
        return error_response(503, "The first critique is still running.", code="not_ready")
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await guard.reviews.check()
    except (StoreUnavailable, TimeoutError) as error:
        return guard_error_response(StoreUnavailable(str(error)))
    return JSONResponse({"status": "ready"})


def _run_control(
    args: Namespace, registry: AdapterStore, url: URL, database: AsyncEngine
) -> RunControl:
    return RunControl(
        job_command(args, every=None),
        job_environment(args),
        runs=RunStore(url, database),
        adapters=registry,
        leases=Leases(url, database),
        audit=AuditStore(url, database),
    )


def _redactor(settings: Settings) -> Redactor | None:
    return Redactor(settings.redact_phone_region) if settings.redact else None


async def _salt(settings: Settings, store: FlagStore) -> str:
    if settings.user_salt is not None:
        return settings.user_salt.get_secret_value()
    return await store.user_salt()
