"""One import of vLLM for a server on a CPU: the engine's process is forked from the server's, and
the worker runs inside it. vLLM would start each of them anew and import itself in each. Owns how
they are joined and to which processors the computing threads are bound; server/launch/processes.py
decides when.

Further API servers (--api-server-count) are vLLM's own and import it once more each: the metrics of
several processes add up only where prometheus_client is imported by each of them.

vLLM gives the worker a process of its own on a CPU because OpenMP reads its environment only when
it is loaded. Here system calls bind the threads instead, each to one of the processors that vLLM
chooses. What this does not give: the first of several computing threads may move among them.

Private parts of vLLM that this stands on, checked with 0.32.0
(tests/guard/vllm/cpu/test_executor.py):

- vllm.v1.executor.uniproc_executor.UniProcExecutor: `_init_executor`, `execute_model`, and
  `compile_or_warm_up_model` as the last call before the engine starts threads for its sockets
- vllm.utils.ompmultiprocessing.OMPProcessManager: `skip_setup` and `cpu_lists`
- vllm.v1.engine.utils.get_mp_context: how the engine's process is started
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.engine import utils as engine_utils
from vllm.v1.executor.uniproc_executor import UniProcExecutor

EXECUTOR = "guard.vllm.cpu.executor.EngineProcessExecutor"
_PR_SET_PDEATHSIG = 1
_ENOUGH_TO_SHARE = 1 << 17
"""Numbers to add for each thread, so that PyTorch gives every one a part."""


class EngineProcessExecutor(UniProcExecutor):
    """Named to vLLM with --distributed-executor-backend."""

    def _init_executor(self) -> None:
        _end_with_parent()
        self._everywhere = os.sched_getaffinity(0)
        threads = OMPProcessManager(self.vllm_config)
        self._processors = self._everywhere if threads.skip_setup else set(threads.cpu_lists[0])
        self._bound = self._everywhere
        # The worker takes its memory from the node of the processor that it runs on; with one node
        # loading is not kept to a processor that others may be using.
        if _memory_nodes() > 1:
            self._bind(self._processors)
        if not threads.skip_setup:
            _start_computing_threads(threads.cpu_lists[0])
        super()._init_executor()

    def compile_or_warm_up_model(self) -> None:
        """As Executor.compile_or_warm_up_model."""
        super().compile_or_warm_up_model()
        # Threads inherit their processors: those that the engine starts next only move messages.
        self._bind(self._everywhere)

    def execute_model(self, *arguments: Any, **options: Any) -> Any:
        """As UniProcExecutor.execute_model."""
        if self._bound != self._processors:
            self._bind(self._processors)
        return super().execute_model(*arguments, **options)

    def _bind(self, processors: Iterable[int]) -> None:
        self._bound = set(processors)
        os.sched_setaffinity(0, self._bound)


def _start_computing_threads(processors: Sequence[int]) -> None:
    """Starts PyTorch's threads, of which this is the first, and binds each other to a processor."""
    # This alone starts threads of another pool, which stay idle.
    torch.set_num_threads(len(processors))
    before = set(_threads())
    torch.zeros(len(processors) * _ENOUGH_TO_SHARE).add_(1)
    for thread, processor in zip(sorted(set(_threads()) - before), processors[1:], strict=False):
        os.sched_setaffinity(thread, {processor})


def _memory_nodes() -> int:
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1


def _threads() -> list[int]:
    return [int(thread) for thread in os.listdir("/proc/self/task")]


def fork_engine() -> None:
    """From now on vLLM forks the engine from this process. Raises RuntimeError for a vLLM that
    starts it in another way than 0.32 does."""
    if not hasattr(engine_utils, "get_mp_context"):
        raise RuntimeError(
            "This vLLM starts its engine without vllm.v1.engine.utils.get_mp_context"
        )
    fork = multiprocessing.get_context("fork")
    engine: Any = engine_utils
    engine.get_mp_context = lambda: fork


def _end_with_parent() -> None:
    """Has the system end this process when its parent is killed. A forked engine would go on to
    hold the port on which the server listened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def preloads_libraries() -> bool:
    """Whether vLLM would start the worker with libraries that this process runs without: an
    allocator of its own, or PyTorch's OpenMP where the system's is another one."""
    return any(
        any(_folder(package).glob(pattern))
        for package, pattern in (("vllm", "libs/libtcmalloc*"), ("torch", "../torch.libs/libgomp*"))
    )


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
