"""Which processes a server runs in. Owns the choice between vLLM's own and one import of vLLM for
server, engine and worker, which is guard/vllm/cpu/executor.py's.
"""

import argparse
import sys
from collections.abc import Mapping

_ONE = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
    "nnodes",
)
_UNSET = ("distributed_executor_backend", "data_parallel_rank", "data_parallel_start_rank")
_OF_OPENMP = ("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "VLLM_CPU_SIM_MULTI_NUMA")


def share_process(options: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Runs the worker in the engine's process and forks that, where one worker on a CPU is all
    there is to run and the user has said nothing else. Call it before the engine starts."""
    from vllm.platforms import current_platform

    if not (current_platform.is_cpu() and sys.platform == "linux"):
        return
    from guard.vllm.cpu.executor import EXECUTOR, fork_engine, preloads_libraries

    if one_worker(options) and nothing_said(environment) and not preloads_libraries():
        options.distributed_executor_backend = EXECUTOR
        fork_engine()


def one_worker(options: argparse.Namespace) -> bool:
    """Whether the options leave one worker, started as vLLM pleases."""
    return (
        all(getattr(options, name, None) in (None, 1) for name in _ONE)
        and all(getattr(options, name, None) is None for name in _UNSET)
        and not getattr(options, "numa_bind", False)
    )


def nothing_said(environment: Mapping[str, str]) -> bool:
    """Whether the environment leaves it open how processes start and where threads run.

    Which processors (VLLM_CPU_OMP_THREADS_BIND) may be said: that is kept to.
    """
    preloaded = environment.get("LD_PRELOAD", "")
    return (
        "VLLM_WORKER_MULTIPROC_METHOD" not in environment
        and environment.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "1"
        and not any(name in environment for name in _OF_OPENMP)
        and not any(library in preloaded for library in ("libomp", "libiomp"))
    )
