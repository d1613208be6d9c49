"""The worker inside the engine's process: where its threads run, and the parts of vLLM it uses."""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.platforms import current_platform
from vllm.utils import ompmultiprocessing
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.engine import core
from vllm.v1.engine import utils as _engine_utils
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from guard.vllm.cpu import executor
from guard.vllm.cpu.executor import EXECUTOR, EngineProcessExecutor, fork_engine

engine_utils: Any = _engine_utils
ROOT = Path(__file__).parents[4]
ALL = os.sched_getaffinity(0)
FIRST = {min(ALL)}


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[set[int]]]:
    """Records where vLLM's own steps ran, without executing them."""
    ran: list[set[int]] = []

    def step(*_arguments: Any, **_options: Any) -> None:
        ran.append(os.sched_getaffinity(0))

    for name in ("_init_executor", "execute_model", "compile_or_warm_up_model"):
        monkeypatch.setattr(UniProcExecutor, name, step)
    monkeypatch.setattr(executor, "_end_with_parent", lambda: None)
    monkeypatch.setattr(executor, "_start_computing_threads", lambda _processors: None)
    yield ran
    os.sched_setaffinity(0, ALL)


def started(monkeypatch: pytest.MonkeyPatch, processors: str) -> EngineProcessExecutor:
    """An executor with the given processors, initialised up to its worker."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", processors)
    parallel = SimpleNamespace(
        local_world_size=1, data_parallel_rank_local=None, _api_process_count=1
    )
    created: EngineProcessExecutor = object.__new__(EngineProcessExecutor)
    config: Any = SimpleNamespace(parallel_config=parallel, kv_transfer_config=None)
    created.vllm_config = config
    created._init_executor()
    return created


@pytest.mark.skipif(len(ALL) < 2, reason="needs two processors")
@pytest.mark.parametrize(("nodes", "loading"), [(1, ALL), (2, FIRST)])
def test_only_what_computes_is_bound(
    monkeypatch: pytest.MonkeyPatch, affinity: list[set[int]], nodes: int, loading: set[int]
) -> None:
    monkeypatch.setattr(executor, "_memory_nodes", lambda: nodes)
    engine_executor = started(monkeypatch, str(min(ALL)))
    engine_executor.compile_or_warm_up_model()
    # Here the engine starts its threads for messages.
    assert os.sched_getaffinity(0) == ALL
    engine_executor.execute_model(None)
    engine_executor.execute_model(None)
    assert affinity == [loading, loading, FIRST, FIRST]


def test_nothing_is_bound_where_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, affinity: list[set[int]]
) -> None:
    engine_executor = started(monkeypatch, "nobind")
    engine_executor.compile_or_warm_up_model()
    engine_executor.execute_model(None)
    assert affinity == [ALL, ALL, ALL]


@pytest.mark.parametrize(
    ("chosen", "free", "environment", "computing"),
    [
        pytest.param([1], [0], {}, [0, 1], id="few"),
        pytest.param([1], [0], {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}, [1], id="the user's way"),
        pytest.param([1, 2, 3, 4], [0], {}, [1, 2, 3, 4], id="many"),
    ],
)
def test_of_few_processors_each_computes(
    monkeypatch: pytest.MonkeyPatch,
    chosen: list[int],
    free: list[int],
    environment: dict[str, str],
    computing: list[int],
) -> None:
    monkeypatch.delenv("VLLM_CPU_NUM_OF_RESERVED_CPU", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads: Any = SimpleNamespace(cpu_lists=[chosen], reserved_cpu_list=free)
    assert executor._computing_processors(threads) == computing


@pytest.mark.skipif(len(ALL) < 2, reason="needs two processors")
def test_each_other_thread_is_bound_to_a_processor_of_its_own() -> None:
    # Runs in its own process, so that this process's threads stay unbound.
    first, second, *_ = sorted(ALL)
    code = (
        "import os; from guard.vllm.cpu import executor; "
        f"executor._start_computing_threads([{first}, {second}]); "
        "print(*(os.sched_getaffinity(each) for each in executor._threads()), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines().count(f"{{{second}}}") == 1


@pytest.fixture
def way_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores vLLM's way of starting the engine."""
    monkeypatch.setattr(engine_utils, "get_mp_context", engine_utils.get_mp_context)


@pytest.mark.usefixtures("way_to_start")
def test_the_engine_is_forked() -> None:
    fork_engine()
    assert engine_utils.get_mp_context().get_start_method() == "fork"


@pytest.mark.usefixtures("way_to_start")
def test_another_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(engine_utils, "get_mp_context")
    with pytest.raises(RuntimeError, match="get_mp_context"):
        fork_engine()


# What follows fails when another vLLM is installed in which a private part has changed.


def test_vllm_finds_the_executor() -> None:
    assert resolve_obj_by_qualname(EXECUTOR) is EngineProcessExecutor


def test_the_executor_has_the_steps_that_are_wrapped() -> None:
    assert "driver_worker.load_model" in inspect.getsource(UniProcExecutor._init_executor)
    assert {"execute_model", "compile_or_warm_up_model"} <= set(dir(UniProcExecutor))


def test_the_engine_starts_its_threads_after_warming_up() -> None:
    assert "compile_or_warm_up_model()" in inspect.getsource(core.EngineCore._initialize_kv_caches)
    source = inspect.getsource(core.EngineCoreProc.__init__)
    assert 0 < source.index("super().__init__(") < source.index("threading.Thread(")


def test_the_engine_s_process_is_started_from_that_context() -> None:
    source = inspect.getsource(engine_utils.CoreEngineProcManager.__init__)
    assert "context = get_mp_context()" in source
    assert "context.Process(" in source


def test_processors_are_chosen_by_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_platform.is_cpu()
    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(
            local_world_size=1, data_parallel_rank_local=None, _api_process_count=1
        ),
        kv_transfer_config=None,
    )
    for processors, expected in (("0", [[0]]), ("1,3-4", [[1, 3, 4]]), ("nobind", [])):
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", processors)
        chosen = ompmultiprocessing.OMPProcessManager(config)
        assert (chosen.cpu_lists, chosen.skip_setup) == (expected, processors == "nobind")
        assert chosen.reserved_cpu_list == []
