"""The patches of vLLM's CPU backend: LoRA operators equal vLLM's where those are correct, and are
correct where those are not; seeds survive a chunked prefill."""

from importlib.metadata import entry_points
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper.utils import compute_meta
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from guard.vllm.cpu import backend as cpu_backend

ADAPTERS, RANK, HIDDEN, OUT = 3, 4, 16, 12
NAMES = ("sgmv_shrink", "sgmv_expand", "sgmv_expand_slice")


@pytest.fixture
def weights() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of 10 tokens, A and B of three adapters."""
    torch.manual_seed(0)
    return (
        torch.randn(10, HIDDEN),
        torch.randn(ADAPTERS, 1, RANK, HIDDEN),
        torch.randn(ADAPTERS, 1, OUT, RANK),
    )


def metadata(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]:
    """The metadata that vLLM passes for these adapters by token."""
    starts, lengths, adapters, batches, longest, count, _ = compute_meta(torch.tensor(tokens))
    return starts, lengths, adapters, batches, longest, count


WITHOUT_BASE = [0, 0, 1, 1, 1, 2, 0, 0, 2, 2]
WITH_BASE = [0, -1, -1, 1, 1, -1, 2, 2, 2, -1]


def run(module: object, tokens: list[int], weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A layer's output of 20 columns, of which LoRA changes 5 to 16."""
    x, a, b = weights
    shrink, expand = getattr(module, "sgmv_shrink"), getattr(module, "sgmv_expand_slice")  # noqa: B009
    buffer = torch.ones(len(tokens), RANK)
    output = torch.arange(200.0).view(10, 20).clone()
    shrink(x, a, buffer, *metadata(tokens), 0.5)
    expand(buffer, b, output, *metadata(tokens), 5, OUT, add_inputs=True)
    return output


def test_results_equal_vllms_if_every_token_has_an_adapter(
    weights: tuple[torch.Tensor, ...],
) -> None:
    torch.testing.assert_close(
        run(cpu_backend, WITHOUT_BASE, weights), run(lora_ops, WITHOUT_BASE, weights)
    )


def test_tokens_without_an_adapter_are_left_alone(weights: tuple[torch.Tensor, ...]) -> None:
    untouched = torch.arange(200.0).view(10, 20)
    found = run(cpu_backend, WITH_BASE, weights)
    base = torch.tensor(WITH_BASE) < 0
    torch.testing.assert_close(found[base], untouched[base])
    x, a, b = weights
    for token in (0, 3, 6):
        adapter = WITH_BASE[token]
        added = 0.5 * b[adapter, 0] @ a[adapter, 0] @ x[token]
        torch.testing.assert_close(found[token, 5:17], untouched[token, 5:17] + added)
        torch.testing.assert_close(found[token, 17:], untouched[token, 17:])


def test_vllm_still_needs_it(weights: tuple[torch.Tensor, ...]) -> None:
    """When this fails, vLLM #48421 is fixed: then the patch only improves speed."""
    untouched = torch.arange(200.0).view(10, 20)
    base = torch.tensor(WITH_BASE) < 0
    assert not torch.allclose(run(lora_ops, WITH_BASE, weights)[base], untouched[base])


def test_expand_covers_what_weights_and_output_share(weights: tuple[torch.Tensor, ...]) -> None:
    _, _, b = weights
    buffer = torch.randn(10, RANK)
    for columns in (OUT - 2, OUT + 3):
        found, expected = torch.ones(10, columns), torch.ones(10, columns)
        for module, output in ((cpu_backend, found), (lora_ops, expected)):
            module.sgmv_expand(buffer, b, output, *metadata(WITHOUT_BASE), add_inputs=True)
        torch.testing.assert_close(found, expected)


def test_without_adding_what_was_there_is_replaced(weights: tuple[torch.Tensor, ...]) -> None:
    _, _, b = weights
    output = torch.ones(10, OUT)
    cpu_backend.sgmv_expand(
        torch.randn(10, RANK), b, output, *metadata(WITH_BASE), add_inputs=False
    )
    assert not output[torch.tensor(WITH_BASE) < 0].any()


def test_it_is_installed_as_vllm_s_general_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.punica_wrapper import punica_cpu

    for name in NAMES:
        monkeypatch.setattr(punica_cpu, name, getattr(lora_ops, name))
    for name in ("_sample", "_bookkeeping_sync"):
        monkeypatch.setattr(CPUModelRunner, name, getattr(GPUModelRunner, name))
    (point,) = entry_points(group="vllm.general_plugins", name="setback")
    point.load()()
    for name in NAMES:
        assert getattr(punica_cpu, name) is getattr(cpu_backend, name)
    assert CPUModelRunner._sample is not GPUModelRunner._sample


def test_a_vllm_without_these_operators_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.punica_wrapper import punica_cpu

    monkeypatch.delattr(punica_cpu, "sgmv_shrink")
    with pytest.raises(RuntimeError, match="sgmv_shrink"):
        cpu_backend.install()


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
