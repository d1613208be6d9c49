"""How LoRA adapters are applied to a layer on a CPU: two small matrix products for each adapter in
the batch, and nothing for tokens without one or for layers that the adapter leaves alone. Owns
these sums. backend.py installs them.

vLLM's wrapper calls an operator for every slice of every layer even in a batch without adapters,
copies an adapter's weights for every token, and uses the last loaded adapter for tokens without
one, so that a base-model request in a mixed batch is answered with another request's adapter (vLLM
#48421, open).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, Tensor | slice]
"""An adapter slot, and the batch's rows that use it."""


Stacked = tuple[Tensor, ...]
"""A or B of all slots, one tensor for each slice of a layer's outputs."""


@dataclass(frozen=True)
class _Packed:
    """One slot's A and B of a layer, for all of its slices at once, without unused ranks.

    a: [inputs, ranks], b: [ranks, outputs], scaled; None where the adapter changes nothing.
    versions: of the tensors that they were packed from, which vLLM overwrites in place.
    """

    a: Tensor | None
    b: Tensor | None
    versions: tuple[int, ...]


class GroupedPunica(PunicaWrapperCPU):
    """Replaces vLLM's wrapper with the same interface. Outputs are changed in place."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._by_token: list[Group] = []
        self._by_request: list[Group] = []
        self._packed: dict[tuple[int, int], _Packed] = {}

    def update_metadata(self, *arguments: Any, **options: Any) -> None:
        """Called once per step, before the layers."""
        super().update_metadata(*arguments, **options)
        self._by_token = _groups(self.token_lora_indices)
        self._by_request = _groups(self.sampler_indices)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Stacked,
        lora_b_stacked: Stacked,
        scale: float,
        output_slices: tuple[int, ...],
        **_options: Any,
    ) -> None:
        """y: [tokens, all slices' outputs]. x: [tokens, inputs]. For each slice, A is
        [slots, 1, rank, inputs] and B is [slots, 1, outputs, rank]."""
        outputs, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._by_token:
            packed = self._pack(lora_a_stacked, lora_b_stacked, slot, scale, output_slices, y.dtype)
            if packed.a is None or packed.b is None:
                continue
            narrow = inputs[rows].to(y.dtype) @ packed.a
            if isinstance(rows, slice):
                outputs.addmm_(narrow, packed.b)
            else:
                # Not index_add_: one rounding as above, so that a batch does not change an answer.
                summed = torch.addmm(outputs[rows], narrow, packed.b)
                outputs.index_copy_(0, rows, summed)

    def _pack(
        self,
        a_stacked: Stacked,
        b_stacked: Stacked,
        slot: int,
        scale: float,
        widths: tuple[int, ...],
        dtype: torch.dtype,
    ) -> _Packed:
        """Returns the slot's weights, packed anew if vLLM has loaded others into it since."""
        key = (a_stacked[0].data_ptr(), slot)
        versions = tuple(tensor._version for tensor in (*a_stacked, *b_stacked))
        packed = self._packed.get(key)
        if packed is None or packed.versions != versions:
            a, b = _joined(a_stacked, b_stacked, slot, widths)
            changes = b.any()
            packed = _Packed(
                a.T.to(dtype).contiguous() if changes else None,
                (b.T * scale).to(dtype).contiguous() if changes else None,
                versions,
            )
            self._packed[key] = packed
        return packed

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


def _joined(
    a_stacked: Stacked, b_stacked: Stacked, slot: int, widths: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Returns the A of all slices, [ranks, inputs], and their B as a block diagonal,
    [outputs, ranks], with the ranks that are used only."""
    parts = []
    for stacked_a, stacked_b, width in zip(a_stacked, b_stacked, widths, strict=True):
        a, b = stacked_a[slot, 0], stacked_b[slot, 0, :width]
        used = a.any(dim=1) & b.any(dim=0)
        parts.append((a[used], b[:, used]))
    return torch.cat([a for a, _ in parts]), torch.block_diag(*(b for _, b in parts))


def _added(x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return (x.to(a.dtype) @ a.T) @ b.T * scale
