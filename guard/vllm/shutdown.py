"""Ends what still waits for an engine that was shut down. vLLM leaves such requests waiting: their
clients get no answer, and the server does not end before they hang up. Owns only that.
"""

import asyncio
from typing import Any


def end_waiting(engine: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Has every request to the engine that is under way raise EngineDeadError. May be called from
    any thread. loop: the loop that the requests run in."""
    from vllm.v1.engine.exceptions import EngineDeadError

    loop.call_soon_threadsafe(engine.output_processor.propagate_error, EngineDeadError())
