"""Fixes for vLLM's CPU backend (0.32). Owns three LoRA operators and the handling of seeds. lora.py
applies adapters to layers without these operators; label_rows.py reads the critique's labels.

- LoRA: vLLM's operators copy an adapter's weights for every token, and use the last loaded adapter
  for tokens without one, so a base-model request in a mixed batch is answered with another
  request's adapter (vLLM #48421, open). Here each run of tokens with one adapter is one matrix
  product, which is several times faster, and tokens without an adapter stay unchanged.
- Seeds: a request with a `seed` and a chunked prefill crashes the engine, because vLLM rewinds the
  random generator by an offset that CPU generators lack. Here its state is restored instead.

Registered as `setback` in the entry-point group vllm.general_plugins, which vLLM loads in each of
its processes. Does nothing on other platforms.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from guard.vllm.cpu.label_rows import reading_labels

_OPERATORS = ("sgmv_shrink", "sgmv_expand", "sgmv_expand_slice")
_PUNICA = "guard.vllm.cpu.lora.GroupedPunica"
_STEPS = ("_sample", "_bookkeeping_sync")


def install() -> None:
    """Patches vLLM in this process. Safe to repeat. Raises RuntimeError when this vLLM lacks what
    would be patched."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for owner, names in (
        (punica_cpu, _OPERATORS),
        (GPUModelRunner, _STEPS),
        (Sampler, ("forward",)),
    ):
        for name in names:
            if not hasattr(owner, name):
                raise RuntimeError(f"This vLLM's CPU backend has no {name} to patch")
    for name in _OPERATORS:
        setattr(punica_cpu, name, globals()[name])
    platform: Any = type(current_platform)
    platform.get_punica_wrapper = classmethod(lambda _platform: _PUNICA)
    runner: Any = CPUModelRunner
    runner._sample = keeping_seeds(GPUModelRunner._sample)
    runner._bookkeeping_sync = without_rewinding(GPUModelRunner._bookkeeping_sync)
    sampler: Any = Sampler
    if not hasattr(sampler.forward, "__wrapped__"):
        sampler.forward = reading_labels(sampler.forward)


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


def sgmv_shrink(
    inputs: Tensor,
    lora_a_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    scaling: float,
) -> None:
    """output = scaling * inputs @ A^T, by adapter; 0 where there is none.

    inputs: [tokens, hidden]. lora_a_weights: [adapters, 1, rank, hidden]. output: [tokens, rank].
    """
    for tokens, adapter in _runs(seq_len_tensor, lora_indices_tensor):
        if adapter < 0:
            output_tensor[tokens] = 0
            continue
        weights = _matrix(lora_a_weights, adapter, inputs.dtype)
        output_tensor[tokens, : len(weights)] = scaling * (inputs[tokens] @ weights.T)


def sgmv_expand_slice(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """output[:, slice] (+)= inputs @ B^T, by adapter.

    inputs: [tokens, rank]. lora_b_weights: [adapters, 1, slice_size, rank].
    """
    columns = slice(slice_offset, slice_offset + slice_size)
    for tokens, adapter in _runs(seq_len_tensor, lora_indices_tensor):
        part = output_tensor[tokens, columns]
        if adapter >= 0:
            weights = _matrix(lora_b_weights, adapter, part.dtype)
            added = inputs[tokens].to(part.dtype) @ weights.T
            part.copy_(part + added if add_inputs else added)
        elif not add_inputs:
            part.zero_()


def sgmv_expand(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    add_inputs: bool = False,
) -> None:
    """As sgmv_expand_slice, over all columns that weights and output have in common."""
    size = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    sgmv_expand_slice(
        inputs,
        lora_b_weights[..., :size, :],
        output_tensor,
        b_seq_start_loc,
        seq_len_tensor,
        lora_indices_tensor,
        batches,
        max_seq_length,
        token_nums,
        0,
        size,
        add_inputs,
    )


def _runs(lengths: Tensor, adapters: Tensor) -> Iterator[tuple[slice, int]]:
    """Yields each run of tokens with its adapter's index, -1 for none."""
    start = 0
    for length, adapter in zip(lengths.tolist(), adapters.tolist(), strict=True):
        yield slice(start, start + length), adapter
        start += length


def _matrix(weights: Tensor, adapter: int, dtype: torch.dtype) -> Tensor:
    chosen = weights[adapter]
    return (chosen.squeeze(0) if chosen.dim() == 3 else chosen).to(dtype)
