"""Adapters on a CPU: each row gets its own adapter's A and B, or nothing without an adapter."""

from types import SimpleNamespace

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.punica_wrapper.punica_selector import get_punica_wrapper
from vllm.platforms import current_platform

from guard.vllm.cpu import backend as cpu_backend
from guard.vllm.cpu.lora import GroupedPunica

SLOTS, RANK, HIDDEN = 3, 4, 16
WIDTHS = (12, 6)
IN_SLOT = [11, 12, 13]
BATCHES = {
    "the base alone": [0, 0, 0],
    "one adapter": [12, 12, 12],
    "a mixture": [11, 0, 13, 13, 0, 12, 11],
}


@pytest.fixture
def weights() -> SimpleNamespace:
    """A and B of three adapters, for two slices of outputs."""
    torch.manual_seed(0)
    return SimpleNamespace(
        a=tuple(torch.randn(SLOTS, 1, RANK, HIDDEN) for _ in WIDTHS),
        b=tuple(torch.randn(SLOTS, 1, width, RANK) for width in WIDTHS),
    )


def wrapper(adapters: list[int]) -> GroupedPunica:
    """A wrapper with the batch's adapters, one token each; 0 is the base model."""
    punica = GroupedPunica(64, 64, "cpu")
    mapping = LoRAMapping(tuple(adapters), tuple(adapters), is_prefill=True)
    punica.update_metadata(mapping, list(IN_SLOT), SLOTS, 32)
    return punica


@pytest.mark.parametrize("name", BATCHES)
def test_each_row_gets_its_own_adapter_or_none(weights: SimpleNamespace, name: str) -> None:
    adapters = BATCHES[name]
    x, y = torch.randn(len(adapters), HIDDEN), torch.randn(len(adapters), sum(WIDTHS))
    output = y.clone()
    wrapper(adapters).add_lora_linear(output, x, weights.a, weights.b, 0.5, WIDTHS)
    for row, adapter in enumerate(adapters):
        expected = y[row].clone()
        if adapter:
            slot = IN_SLOT.index(adapter)
            expected += 0.5 * torch.cat(
                [
                    b[slot, 0] @ a[slot, 0] @ x[row]
                    for a, b in zip(weights.a, weights.b, strict=True)
                ]
            )
        torch.testing.assert_close(output[row], expected)


def test_other_requests_in_the_batch_do_not_change_the_rounding() -> None:
    """Otherwise an answer would change while two adapters are in use."""
    torch.manual_seed(0)
    a = (torch.randn(SLOTS, 1, RANK, HIDDEN).bfloat16(),)
    b = (torch.randn(SLOTS, 1, WIDTHS[0], RANK).bfloat16(),)
    x, y = torch.randn(48, HIDDEN).bfloat16(), torch.randn(48, WIDTHS[0]).bfloat16()
    alone, mixed = y[::2].clone(), y.clone()
    wrapper([12] * 24).add_lora_linear(alone, x[::2].contiguous(), a, b, 1.0, WIDTHS[:1])
    wrapper([12, 11] * 24).add_lora_linear(mixed, x, a, b, 1.0, WIDTHS[:1])
    assert torch.equal(mixed[::2], alone)


def test_weights_that_vllm_overwrites_are_used_at_once(weights: SimpleNamespace) -> None:
    """vLLM loads another adapter into a slot in place, in inference mode and outside of it."""
    x, punica = torch.randn(3, HIDDEN), wrapper([12, 12, 12])

    def added() -> torch.Tensor:
        y = torch.zeros(3, sum(WIDTHS))
        punica.add_lora_linear(y, x, weights.a, weights.b, 1.0, WIDTHS)
        return y

    first = added()
    with torch.inference_mode():
        weights.b[0][1, 0, :, :RANK].copy_(2 * weights.b[0][1, 0])
    torch.testing.assert_close(added()[:, : WIDTHS[0]], 2 * first[:, : WIDTHS[0]])
    for tensor in (*weights.a, *weights.b):
        tensor[1] = 0
    assert not added().any()


def test_a_lower_rank_than_the_slots_have_and_a_slice_without_weights(
    weights: SimpleNamespace,
) -> None:
    x, y = torch.randn(2, HIDDEN), torch.zeros(2, sum(WIDTHS))
    weights.a[0][0, 0, 2:] = 0
    weights.b[0][0, 0, :, 2:] = 0
    weights.b[1][0] = 0
    wrapper([11, 11]).add_lora_linear(y, x, weights.a, weights.b, 1.0, WIDTHS)
    expected = x @ weights.a[0][0, 0].T @ weights.b[0][0, 0].T
    torch.testing.assert_close(y[:, : WIDTHS[0]], expected)
    assert not y[:, WIDTHS[0] :].any()


@pytest.mark.parametrize("name", BATCHES)
def test_logits_likewise_over_the_columns_in_common(weights: SimpleNamespace, name: str) -> None:
    adapters = BATCHES[name]
    a, b = weights.a[0], weights.b[0]
    for columns in (WIDTHS[0] - 2, WIDTHS[0] + 3):
        x, y = torch.randn(len(adapters), HIDDEN), torch.randn(len(adapters), columns)
        output = y.clone()
        wrapper(adapters).add_lora_logits(output, x, a, b, 2.0)
        for row, adapter in enumerate(adapters):
            expected = y[row].clone()
            if adapter:
                slot, width = IN_SLOT.index(adapter), min(columns, WIDTHS[0])
                expected[:width] += 2.0 * (b[slot, 0] @ a[slot, 0] @ x[row])[:width]
            torch.testing.assert_close(output[row], expected)


@pytest.mark.parametrize("name", BATCHES)
def test_embeddings_likewise(weights: SimpleNamespace, name: str) -> None:
    adapters, b = BATCHES[name], weights.b[0]
    x, y = torch.randn(len(adapters), RANK), torch.randn(len(adapters), WIDTHS[0])
    output = y.clone()
    wrapper(adapters).add_lora_embedding(output, x, b, add_input=True)
    for row, adapter in enumerate(adapters):
        added = b[IN_SLOT.index(adapter), 0] @ x[row] if adapter else torch.zeros(WIDTHS[0])
        torch.testing.assert_close(output[row], y[row] + added)


def test_vllm_still_needs_it() -> None:
    """When this fails, vLLM #48421 is fixed: then the patch only improves speed."""
    torch.manual_seed(0)
    adapters = BATCHES["a mixture"]
    a, b = torch.randn(SLOTS, 1, RANK, HIDDEN), torch.randn(SLOTS, 1, WIDTHS[0], RANK)
    x, y = torch.randn(len(adapters), HIDDEN), torch.zeros(len(adapters), WIDTHS[0])
    own = wrapper(adapters)
    PunicaWrapperCPU.add_lora_linear(own, y, x, (a,), (b,), 1.0, (WIDTHS[0],))
    assert y[[row for row, adapter in enumerate(adapters) if not adapter]].any()


def test_vllm_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if not current_platform.is_cpu():
        pytest.skip("mended on CPUs only")
    before = type(current_platform).__dict__["get_punica_wrapper"]
    monkeypatch.setattr(type(current_platform), "get_punica_wrapper", before)
    cpu_backend.install()
    assert isinstance(get_punica_wrapper(64, 64, "cpu"), GroupedPunica)
