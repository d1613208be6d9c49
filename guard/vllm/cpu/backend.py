"""Fixes for vLLM's CPU backend. Owns their installation and the handling of seeds: a request with a
`seed` and a chunked prefill crashes the engine, because vLLM rewinds the random generator by an
offset that CPU generators lack. Here its state is restored instead. lora.py applies adapters;
label_rows.py reads the critique's labels.

Registered as `setback_cpu` in the entry-point group vllm.general_plugins, which vLLM loads in each
of its processes, a plain `vllm serve` included. So it does nothing unless VLLM_PLUGINS names it,
which `setback serve` sees to, and nothing on other platforms.
"""

import os
from collections.abc import Callable
from typing import Any

from guard.errors import VllmIncompatible
from guard.vllm.cpu import PLUGIN
from guard.vllm.cpu.label_rows import reading_labels

_PUNICA = "guard.vllm.cpu.lora.GroupedPunica"


def load() -> None:
    """The entry point: installs the fixes if VLLM_PLUGINS names this plugin."""
    if PLUGIN in os.environ.get("VLLM_PLUGINS", "").split(","):
        install()


def install() -> None:
    """Patches vLLM in this process. Safe to repeat."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    platform: Any = type(current_platform)
    platform.get_punica_wrapper = classmethod(lambda _platform: _PUNICA)
    runner: Any = CPUModelRunner
    runner._sample = keeping_seeds(GPUModelRunner._sample)
    runner._bookkeeping_sync = without_rewinding(GPUModelRunner._bookkeeping_sync)
    sampler: Any = Sampler
    if not hasattr(sampler.forward, "__wrapped__"):
        sampler.forward = reading_labels(sampler.forward)


def require_installed() -> None:
    """Raises VllmIncompatible on a CPU when vLLM has not loaded this plugin: the server would work,
    but many times slower."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and current_platform.get_punica_wrapper() != _PUNICA:
        raise VllmIncompatible(
            f"vLLM did not load the plugin {PLUGIN}; reinstall Setback, and see VLLM_PLUGINS"
        )


def keeping_seeds(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a model runner's `_sample`: restores the generators of requests whose sampled token is
    dropped because their prefill is not complete."""

    def sampled(runner: Any, *arguments: Any, **options: Any) -> Any:
        batch = runner.input_batch
        dropped = runner.discard_request_mask.np[: batch.num_reqs]
        states = [
            (generator, generator.get_state())
            for index, generator in batch.generators.items()
            if dropped[index]
        ]
        output = sample(runner, *arguments, **options)
        for generator, state in states:
            generator.set_state(state)
        return output

    return sampled


def without_rewinding(bookkeep: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a model runner's `_bookkeeping_sync` so that it finds no generator to rewind."""

    def bookkept(runner: Any, *arguments: Any, **options: Any) -> Any:
        batch = runner.input_batch
        generators, batch.generators = batch.generators, {}
        try:
            return bookkeep(runner, *arguments, **options)
        finally:
            batch.generators = generators

    return bookkept
