"""LoRA on vLLM's CPU backend: right for requests without an adapter, and several times as fast.

vLLM's own operators (0.32) copy an adapter's weights for every token, and take the last loaded
adapter for tokens that have none, so that a base request in a batch with others is answered with a
foreign adapter (vLLM #48421, open). Here each run of tokens with one adapter is one matrix product,
and tokens without an adapter are left alone. Owns the three operators of the prefill path, which is
the only one that vLLM's CPU worker takes; named `setback` in the group vllm.general_plugins, which
vLLM loads in every process. Elsewhere than on a CPU it does nothing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_REPLACED = ("sgmv_shrink", "sgmv_expand", "sgmv_expand_slice")


def install() -> None:
    """Puts the operators in the place of vLLM's; safe to repeat."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    for name in _REPLACED:
        # Loud when a later vLLM has no such operator: nothing would be replaced.
        if not hasattr(punica_cpu, name):
            raise RuntimeError(f"this vLLM has no {name} on the CPU; setback.cpu_lora needs it")
        setattr(punica_cpu, name, globals()[name])


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
    """The same over all columns that weights and output have in common."""
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
    """Each run of tokens and its adapter's place, -1 for none."""
    start = 0
    for length, adapter in zip(lengths.tolist(), adapters.tolist(), strict=True):
        yield slice(start, start + length), adapter
        start += length


def _matrix(weights: Tensor, adapter: int, dtype: torch.dtype) -> Tensor:
    chosen = weights[adapter]
    return (chosen.squeeze(0) if chosen.dim() == 3 else chosen).to(dtype)
