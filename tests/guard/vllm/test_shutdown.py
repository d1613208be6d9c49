"""Requests that wait for an engine that was shut down end with an error."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from guard.vllm.shutdown import end_waiting


async def test_what_waits_raises() -> None:
    collectors = [
        RequestOutputCollector(kind, "1")
        for kind in (RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY)
    ]
    processor = OutputProcessor(None, log_stats=False)
    states: Any = processor.request_states
    for number, collector in enumerate(collectors):
        states[str(number)] = SimpleNamespace(queue=collector)
    waiting = [asyncio.ensure_future(collector.get()) for collector in collectors]
    await asyncio.to_thread(
        end_waiting, SimpleNamespace(output_processor=processor), asyncio.get_running_loop()
    )
    for one in waiting:
        with pytest.raises(EngineDeadError):
            await asyncio.wait_for(one, timeout=5)
