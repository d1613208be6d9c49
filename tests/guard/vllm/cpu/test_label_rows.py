"""Label reads in vLLM's sampler are correct, and other requests in the batch are unaffected."""

from typing import Any

import pytest
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from guard.vllm.cpu.label_rows import reading_labels

VOCABULARY = 50
ORIGINAL = getattr(Sampler.forward, "__wrapped__", Sampler.forward)


@pytest.fixture
def logits() -> torch.Tensor:
    """The logits of three requests."""
    return torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))


def metadata(**overrides: Any) -> SamplingMetadata:
    """The metadata of a greedy batch."""
    nothing = torch.empty(0)
    fields: dict[str, Any] = {
        "temperature": None,
        "all_greedy": True,
        "all_random": False,
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": nothing,
        "presence_penalties": nothing,
        "repetition_penalties": nothing,
        "output_token_ids": [[], [], []],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
    }
    return SamplingMetadata(**(fields | overrides))


def vllm_s(logits: torch.Tensor, **overrides: Any) -> LogprobsTensors:
    tensors: LogprobsTensors | None
    tensors = ORIGINAL(Sampler(), logits.clone(), metadata(**overrides)).logprobs_tensors
    assert tensors is not None
    return tensors


def sampled(logits: torch.Tensor, **overrides: Any) -> LogprobsTensors:
    output = reading_labels(ORIGINAL)(Sampler(), logits.clone(), metadata(**overrides))
    tensors: LogprobsTensors = output.logprobs_tensors
    return tensors


def row(tensors: LogprobsTensors, number: int) -> dict[int, float]:
    """Returns a request's log-probabilities by token, without those that are -inf."""
    ids, values = tensors.logprob_token_ids[number].tolist(), tensors.logprobs[number].tolist()
    return {t: v for t, v in zip(ids, values, strict=True) if v != float("-inf")}


def test_labels_are_read_over_the_whole_vocabulary(logits: torch.Tensor) -> None:
    tensors = sampled(logits, logprob_token_ids={1: [7, 9, 30]})
    expected = logits[1].log_softmax(dim=-1)
    first = int(logits[1].argmax())
    assert row(tensors, 1) == pytest.approx({t: float(expected[t]) for t in (7, 9, 30, first)})
    assert tensors.selected_token_ranks[1] == 1


@pytest.mark.parametrize("labels", [[7], [7, 9, 30, 31, 32, 33]])
def test_others_get_the_log_probabilities_that_they_asked_for(
    logits: torch.Tensor, labels: list[int]
) -> None:
    alone = vllm_s(logits, max_num_logprobs=2)
    tensors = sampled(logits, max_num_logprobs=2, logprob_token_ids={1: labels})
    for number in (0, 2):
        assert row(tensors, number) == row(alone, number)
        assert tensors.selected_token_ranks[number] == alone.selected_token_ranks[number]
    assert set(row(tensors, 1)) == {*labels, int(logits[1].argmax())}


def test_requests_may_name_different_labels(logits: torch.Tensor) -> None:
    tensors = sampled(logits, logprob_token_ids={0: [3, 4], 2: [5]})
    for number, labels in ((0, {3, 4}), (2, {5})):
        expected = logits[number].log_softmax(dim=-1)
        reported = labels | {int(logits[number].argmax())}
        assert row(tensors, number) == pytest.approx({t: float(expected[t]) for t in reported})


def test_without_labels_the_sampler_is_vllm_s(logits: torch.Tensor) -> None:
    alone = vllm_s(logits, max_num_logprobs=2)
    for mine, theirs in zip(sampled(logits, max_num_logprobs=2)[:3], alone[:3], strict=True):
        torch.testing.assert_close(mine, theirs)
