"""The patches of vLLM's CPU backend: installed only where they are wanted; seeds survive a chunked
prefill."""

from importlib.metadata import entry_points
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.platforms import current_platform
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from guard.errors import VllmIncompatible
from guard.vllm.cpu import PLUGIN
from guard.vllm.cpu import backend as cpu_backend


@pytest.mark.parametrize(
    ("plugins", "installed"),
    [("setback,setback_cpu", True), ("setback_cpu", True), ("setback", False), (None, False)],
)
def test_a_plain_vllm_is_left_as_it_is(
    plugins: str | None, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = type(current_platform)
    monkeypatch.setattr(platform, "get_punica_wrapper", platform.__dict__["get_punica_wrapper"])
    for name in ("_sample", "_bookkeeping_sync"):
        monkeypatch.setattr(CPUModelRunner, name, getattr(GPUModelRunner, name))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    (point,) = entry_points(group="vllm.general_plugins", name=PLUGIN)
    point.load()()
    assert (CPUModelRunner._sample is not GPUModelRunner._sample) is installed


def test_a_server_does_not_start_without_the_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = type(current_platform)
    monkeypatch.setattr(platform, "get_punica_wrapper", classmethod(lambda _: "vllm.Slow"))
    with pytest.raises(VllmIncompatible, match="setback_cpu"):
        cpu_backend.require_installed()
    cpu_backend.install()
    cpu_backend.require_installed()


class Runner:
    """The sampling part of vLLM's model runner: two requests; the first one's token is dropped."""

    def __init__(self) -> None:
        seeded = {place: torch.Generator().manual_seed(5) for place in (0, 1)}
        self.input_batch = SimpleNamespace(num_reqs=2, generators=seeded)
        self.discard_request_mask = SimpleNamespace(np=np.array([True, False, True]))

    def draw(self) -> list[float]:
        generators = self.input_batch.generators.values()
        return [torch.rand(1, generator=generator).item() for generator in generators]

    def rewind(self) -> int:
        """What vLLM does to the generator of a request whose token is dropped."""
        for generator in self.input_batch.generators.values():
            generator.set_offset(generator.get_offset() - 4)
        return 3


def test_a_dropped_token_leaves_its_seed_as_it_was() -> None:
    runner = Runner()
    sample = cpu_backend.keeping_seeds(Runner.draw)
    first, second = sample(runner), sample(runner)
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_vllm_s_own_rewinding_fails_on_a_cpu_and_is_left_out() -> None:
    runner = Runner()
    with pytest.raises(RuntimeError, match="does not use offset"):
        runner.rewind()
    generators = runner.input_batch.generators
    assert cpu_backend.without_rewinding(Runner.rewind)(runner) == 3
    assert runner.input_batch.generators is generators
    assert len(generators) == 2
