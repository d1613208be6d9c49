"""A deployment for Ray Serve whose replicas answer as `setback serve` does: vLLM's own application
with the guard. Ray Serve LLM builds vLLM's engine without endpoint plugins, and so without a guard.
Owns the application's start and end in a replica. Imports neither Ray nor vLLM before it is needed.

    from ray import serve
    from server.launch.ray_serve import guarded_deployment

    serve.run(guarded_deployment(["Qwen/Qwen3-8B"], num_replicas=2).bind())

Settings are SETBACK_* variables of the replicas' environment, or options. The replicas share the
database, and the adapters (SETBACK_ADAPTERS_URL, or a shared folder).
"""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

# Ray's proxy passes on what others send, so keys are required whatever address it listens on.
_ADDRESS = ("--host", "0.0.0.0")
_QUEUED_BY_VLLM = 100_000
"""Ray lets five requests at a time into a replica by default; vLLM has a queue of its own."""


def guarded_deployment(arguments: Sequence[str], **options: Any) -> Any:
    """Returns a deployment to bind.

    arguments: of `setback serve`. options: of `serve.deployment`, such as num_replicas.
    """
    from ray import serve

    application = GuardedApplication([*arguments, *_ADDRESS])

    @serve.deployment(**{"max_ongoing_requests": _QUEUED_BY_VLLM, **options})
    @serve.ingress(application)
    class Setback:
        async def check_health(self) -> None:
            """Asked by Ray, which replaces a replica whose engine is dead."""
            await application.check_health()

    return Setback


class GuardedApplication:
    """An ASGI application that starts an engine and vLLM's application with its lifespan, and stops
    them at its end. It can be pickled until then."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = tuple(arguments)
        self._served: FastAPI | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert self._served is not None, "requests come after the lifespan's start"
        await self._served(scope, receive, send)

    async def check_health(self) -> None:
        """Raises vLLM's error when the engine is dead."""
        if self._served is not None:
            await self._served.state.engine_client.check_health()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with _serving(self._arguments) as self._served:
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def _serving(arguments: Sequence[str]) -> AsyncIterator[FastAPI]:
    """Runs an engine and yields vLLM's application on it, guarded. Raises what prepare() does."""
    from server.launch.serve import prepare

    # In a thread: it imports vLLM and runs an event loop of its own.
    options: Namespace = await asyncio.to_thread(prepare, arguments)
    # As vLLM's command line does.
    options.model = options.model_tag
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app

    async with build_async_engine_client(options) as engine:
        tasks = await engine.get_supported_tasks()
        app = build_app(options, tasks, engine.model_config)
        await init_app_state(engine, app.state, options, tasks)
        async with app.router.lifespan_context(app):
            yield app
