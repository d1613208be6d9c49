"""How LoRA adapters are applied to a layer on a CPU: two small matrix products for each adapter in
the batch, and nothing for tokens without one. Owns this sum. backend.py installs it.

vLLM's wrapper calls an operator for every slice of every layer even in a batch without adapters,
copies an adapter's weights for every token, and uses the last loaded adapter for tokens without
one, so that a base-model request in a mixed batch is answered with another request's adapter (vLLM
#48421, open).
"""

from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, Tensor | slice]
"""An adapter slot, and the batch's rows that use it."""


class GroupedPunica(PunicaWrapperCPU):
    """Replaces vLLM's wrapper with the same interface. Outputs are changed in place."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._by_token: list[Group] = []
        self._by_request: list[Group] = []

    def update_metadata(self, *arguments: Any, **options: Any) -> None:
        """Called once per step, before the layers."""
        super().update_metadata(*arguments, **options)
        self._by_token = _groups(self.token_lora_indices)
        self._by_request = _groups(self.sampler_indices)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_options: Any,
    ) -> None:
        """y: [tokens, all slices' outputs]. x: [tokens, inputs]. For each slice, A is
        [slots, 1, rank, inputs] and B is [slots, 1, outputs, rank]."""
        outputs, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._by_token:
            own, begin = inputs[rows], 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                outputs[rows, begin : begin + width] += _added(own, a[slot, 0], b[slot, 0], scale)
                begin += width

    def add_lora_embedding(
        self,
        y: Tensor,
        x: Tensor,
        lora_b_stacked: Tensor,
        add_inputs: bool = True,
        **_options: Any,
    ) -> None:
        """y: [tokens, hidden]. x: [tokens, rank], the rows of A that the tokens select. B is
        [slots, 1, hidden, rank]. vLLM always adds."""
        for slot, rows in self._by_token:
            b = lora_b_stacked[slot, 0]
            y[rows] += x[rows].to(b.dtype) @ b.T

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        **_options: Any,
    ) -> None:
        """y: [requests, vocabulary]. x: [requests, inputs]."""
        for slot, rows in self._by_request:
            added = _added(x[rows], lora_a_stacked[slot, 0], lora_b_stacked[slot, 0], scale)
            width = min(y.shape[-1], added.shape[-1])
            y[rows, :width] += added[:, :width]


def _groups(slots: Tensor) -> list[Group]:
    """slots: the slot of each row, -1 for none."""
    used: list[int] = slots.unique().tolist()
    if len(used) == 1 and used[0] >= 0:
        return [(used[0], slice(0, len(slots)))]
    return [(slot, (slots == slot).nonzero().flatten()) for slot in used if slot >= 0]


def _added(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return (x.to(a.dtype) @ a.T) @ b.T * scale
