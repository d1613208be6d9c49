"""The vLLM endpoint plugin: closes routes, adds ours and puts the guard in front of the engine in
each API-server process. Owns that wiring only; middleware.py proves at start-up that it happened.
"""

import asyncio
import logging
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import State
from starlette.exceptions import HTTPException as StarletteHTTPException
from vllm.renderers.chat_utils import load_chat_template

from guard.critic import Critic
from guard.engine import GuardedEngine, GuardOptions
from guard.errors import GuardError
from guard.policy import load_policy
from guard.recorder import Provenance, Recorder
from guard.store.flags import FlagStore
from guard.tasks import spawn
from guard.template import ChatFormat
from server import moderations
from server.errors import BadRequest, error_response, on_bad_request, on_guard_error, on_http_error
from server.metrics import PrometheusObserver
from server.moderations import Moderator
from server.revision import model_revision
from server.routes import close_other_routes
from server.seal import seal
from server.settings import Settings, load_settings

_WARM_UP_TEXT = "Hello."
_RETRY_S = 1.0
_log = logging.getLogger("vllm.setback")

router = APIRouter()


@dataclass
class GuardState:
    """What our routes need, in `app.state.setback`; ready once a real critique has been made."""

    moderator: Moderator
    critic: Critic
    chat_format: ChatFormat
    ready: bool = field(default=False)

    async def warm_up(self) -> None:
        """Makes the first critique, which compiles; then the server is ready."""
        subject = self.critic.text(self.chat_format.encode(_WARM_UP_TEXT))
        while not self.ready:
            try:
                await self.critic.judge(subject, categories_from=0.0)
            except GuardError as error:
                _log.warning("The first critique failed and is tried again: %s", error)
                await asyncio.sleep(_RETRY_S)
            else:
                self.ready = True


class GuardPlugin:
    """Named `setback` in the entry-point group vllm.endpoint_plugins."""

    name = "setback"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds our routes and error handlers, and closes every route not known to be safe."""
        app.include_router(router)
        app.include_router(moderations.router)
        app.add_exception_handler(GuardError, on_guard_error)
        app.add_exception_handler(BadRequest, on_bad_request)
        app.add_exception_handler(StarletteHTTPException, on_http_error)
        closed = close_other_routes(app, load_settings().open_routes)
        _log.info("Closed routes: %s", ", ".join(closed))

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Builds the guard around `engine_client` and seals every handler to it.

        Raises StoreUnavailable, PolicyInvalid, TemplateUnusable or UnguardedRoute: each ends the
        process before it serves anything.
        """
        settings = load_settings()
        store = FlagStore(settings.database_url)
        await store.check()
        tokenizer = engine_client.renderer.get_tokenizer()
        chat_format = ChatFormat(tokenizer, load_chat_template(args.chat_template))
        model_config = engine_client.model_config
        critic = Critic(
            engine_client,
            tokenizer,
            chat_format,
            max_model_len=model_config.max_model_len,
            timeout_s=settings.critic_timeout_s,
        )
        policy = load_policy(settings.policy_file)
        served = [path.name for path in state.openai_serving_models.base_model_paths]
        provenance = Provenance(
            model=served[0],
            model_revision=model_revision(model_config),
            policy_hash=policy.hash,
            user_salt=await _salt(settings, store),
        )
        guarded = GuardedEngine(
            engine_client,
            critic=critic,
            chat_format=chat_format,
            policy=policy,
            recorder=Recorder(store, provenance),
            observer=PrometheusObserver(),
            options=GuardOptions(settings.reminder, settings.on_failure == "open"),
        )
        seal(state, engine_client, guarded)
        moderator = Moderator(critic, chat_format, policy, served)
        state.setback = GuardState(moderator, critic, chat_format)
        spawn(state.setback.warm_up())


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 once this process has made a real critique, 503 until then."""
    if request.app.state.setback.ready:
        return JSONResponse({"status": "ready"})
    return error_response(503, "The first critique is still running.", code="not_ready")


async def _salt(settings: Settings, store: FlagStore) -> str:
    if settings.user_salt is not None:
        return settings.user_salt.get_secret_value()
    return await store.user_salt()
