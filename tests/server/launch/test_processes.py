"""The choice of processes: one import of vLLM, unless the user or the model needs more."""

import argparse
from typing import Any

import pytest

from server.launch import serve
from server.launch.processes import has_no_process_options, has_one_worker


def options(*arguments: str) -> argparse.Namespace:
    return serve.parse(arguments)


def test_one_worker_shares_the_engine_s_process() -> None:
    assert has_one_worker(options())
    assert has_one_worker(options("--api-server-count", "2"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tensor-parallel-size", "2"),
        ("--pipeline-parallel-size", "2"),
        ("--data-parallel-size", "2"),
        ("--distributed-executor-backend", "mp"),
        ("--distributed-executor-backend", "uni"),
        ("--data-parallel-rank", "1"),
        ("--nnodes", "2"),
        ("--numa-bind",),
    ],
)
def test_the_user_s_way_wins(arguments: tuple[str, ...]) -> None:
    assert not has_one_worker(options(*arguments))


@pytest.mark.parametrize(
    "environment",
    [
        {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        {"OMP_PLACES": "cores"},
        {"OMP_PROC_BIND": "true"},
        {"GOMP_CPU_AFFINITY": "0 1"},
        {"VLLM_CPU_SIM_MULTI_NUMA": "1"},
        {"LD_PRELOAD": "/usr/lib/libiomp5.so"},
    ],
)
def test_the_environment_wins_too(environment: dict[str, Any]) -> None:
    assert not has_no_process_options(environment)


def test_the_processors_may_be_configured() -> None:
    assert has_no_process_options({"VLLM_CPU_OMP_THREADS_BIND": "0-3", "OMP_NUM_THREADS": "4"})
