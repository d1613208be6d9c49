"""Imports vLLM once for a server on a CPU: the engine's process is forked from the server's, and
the worker runs inside the engine. vLLM would spawn each of them, and each would import vLLM again.
Owns the fork and the processors to which the compute threads are bound. Does not decide when to use
it (server/launch/processes.py).

Additional API servers (--api-server-count) are still spawned and import vLLM themselves, because
prometheus_client's multiprocess metrics need an import in each process.

vLLM starts a separate worker process on a CPU because OpenMP reads its environment only when it is
loaded. Here system calls bind the threads instead, each to a processor that vLLM chose. One
difference remains: the first of several compute threads may move among these processors. Where
there are few processors, all of them compute.
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

from guard.vllm.cpu import FEW_PROCESSORS

EXECUTOR = "guard.vllm.cpu.executor.EngineProcessExecutor"
_PR_SET_PDEATHSIG = 1
_RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"
_VALUES_PER_THREAD = 1 << 17
"""Values for each thread to add, enough that PyTorch uses every thread."""


class EngineProcessExecutor(UniProcExecutor):
    """Passed to vLLM as --distributed-executor-backend."""

    def _init_executor(self) -> None:
        _end_with_parent()
        self._all_processors = os.sched_getaffinity(0)
        threads = OMPProcessManager(self.vllm_config)
        computing = [] if threads.skip_setup else _computing_processors(threads)
        self._processors = set(computing) or self._all_processors
        self._bound = self._all_processors
        # Memory is allocated on the current processor's node. With a single node there is no need
        # to load on one particular processor, which others may be using.
        if _memory_nodes() > 1:
            self._bind(self._processors)
        if computing:
            _start_computing_threads(computing)
        super()._init_executor()

    def compile_or_warm_up_model(self) -> None:
        """As Executor.compile_or_warm_up_model."""
        super().compile_or_warm_up_model()
        # Threads inherit their processors, and those the engine starts next only move messages.
        self._bind(self._all_processors)

    def execute_model(self, *arguments: Any, **options: Any) -> Any:
        """As UniProcExecutor.execute_model."""
        if self._bound != self._processors:
            self._bind(self._processors)
        return super().execute_model(*arguments, **options)

    def _bind(self, processors: Iterable[int]) -> None:
        self._bound = set(processors)
        os.sched_setaffinity(0, self._bound)


def _computing_processors(threads: OMPProcessManager) -> list[int]:
    """Returns the processors to compute on: vLLM's choice, and of few processors also the one that
    it keeps free, unless the user does."""
    chosen, free = threads.cpu_lists[0], threads.reserved_cpu_list
    few = len(chosen) + len(free) <= FEW_PROCESSORS
    return sorted({*chosen, *free}) if few and _RESERVED not in os.environ else list(chosen)


def _start_computing_threads(processors: Sequence[int]) -> None:
    """Starts PyTorch's threads besides this one, and binds each to a processor."""
    # This call alone would start the threads of another pool, which stay idle.
    torch.set_num_threads(len(processors))
    before = set(_threads())
    torch.zeros(len(processors) * _VALUES_PER_THREAD).add_(1)
    for thread, processor in zip(sorted(set(_threads()) - before), processors[1:], strict=False):
        os.sched_setaffinity(thread, {processor})


def _memory_nodes() -> int:
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1


def _threads() -> list[int]:
    return [int(thread) for thread in os.listdir("/proc/self/task")]


def fork_engine() -> None:
    """Makes vLLM fork the engine from this process. Raises RuntimeError when this vLLM starts its
    engine in another way."""
    if not hasattr(engine_utils, "get_mp_context"):
        raise RuntimeError(
            "This vLLM starts its engine without vllm.v1.engine.utils.get_mp_context"
        )
    fork = multiprocessing.get_context("fork")
    engine: Any = engine_utils
    engine.get_mp_context = lambda: fork


def _end_with_parent() -> None:
    """Asks the kernel to end this process when its parent dies. Otherwise a forked engine would
    keep the server's port in use."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def preloads_libraries() -> bool:
    """Whether vLLM would preload libraries for the worker that this process lacks: tcmalloc, or
    PyTorch's own OpenMP."""
    return any(
        any(_folder(package).glob(pattern))
        for package, pattern in (("vllm", "libs/libtcmalloc*"), ("torch", "../torch.libs/libgomp*"))
    )


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
