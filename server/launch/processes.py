"""Which processes a server consists of. Owns the choice between vLLM's own processes and those of
guard/vllm/cpu/executor.py, in which server, engine and worker share one import of vLLM.
"""

import argparse
import sys
from collections.abc import Mapping

_MUST_BE_ONE = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
    "nnodes",
)
_MUST_BE_UNSET = ("distributed_executor_backend", "data_parallel_rank", "data_parallel_start_rank")
_OPENMP_VARIABLES = ("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "VLLM_CPU_SIM_MULTI_NUMA")


def share_process(options: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Runs the worker in the engine's process and forks that process, if one CPU worker is all that
    is needed and the user has not configured processes. Call it before the engine starts."""
    from vllm.platforms import current_platform

    if not (current_platform.is_cpu() and sys.platform == "linux"):
        return
    from guard.vllm.cpu.executor import EXECUTOR, fork_engine, preloads_libraries

    if has_one_worker(options) and has_no_process_options(environment) and not preloads_libraries():
        options.distributed_executor_backend = EXECUTOR
        fork_engine()


def has_one_worker(options: argparse.Namespace) -> bool:
    """Whether the options ask for a single worker and leave its start to vLLM."""
    return (
        all(getattr(options, name, None) in (None, 1) for name in _MUST_BE_ONE)
        and all(getattr(options, name, None) is None for name in _MUST_BE_UNSET)
        and not getattr(options, "numa_bind", False)
    )


def has_no_process_options(environment: Mapping[str, str]) -> bool:
    """Whether the environment does not say how processes start or where threads run.

    It may name processors (VLLM_CPU_OMP_THREADS_BIND), since these are respected.
    """
    preloaded = environment.get("LD_PRELOAD", "")
    return (
        "VLLM_WORKER_MULTIPROC_METHOD" not in environment
        and environment.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "1"
        and not any(name in environment for name in _OPENMP_VARIABLES)
        and not any(library in preloaded for library in ("libomp", "libiomp"))
    )
