"""How the sampler of vLLM's CPU backend reads labels. Owns a sampler that reads them only in
the rows of requests that ask for them. backend.py installs it.

vLLM computes log-probabilities and ranks for the whole batch as soon as one request has
`logprob_token_ids`, and gives all requests its columns, so that a request for `top_logprobs` in the
same step gets none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors

Labels = Mapping[int, Sequence[int]]
"""The token ids to read, by row of the batch."""

_WHOLE_VOCABULARY = -1


def reading_labels(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a sampler's `forward` so that it reads labels separately."""

    @wraps(forward)
    def forwarded(
        sampler: Any, logits: Tensor, sampling_metadata: Any, *more: Any, **options: Any
    ) -> Any:
        labels = sampling_metadata.logprob_token_ids
        if not labels or sampling_metadata.max_num_logprobs == _WHOLE_VOCABULARY:
            return forward(sampler, logits, sampling_metadata, *more, **options)
        # Before sampling, which may change the logits in place.
        logprobs = logits[list(labels)].log_softmax(dim=-1, dtype=torch.float32)
        others = replace(sampling_metadata, logprob_token_ids=None)
        output = forward(sampler, logits, others, *more, **options)
        sampled = output.sampled_token_ids.flatten()
        tensors = with_labels(output.logprobs_tensors, sampled, labels, logprobs)
        return replace(output, logprobs_tensors=tensors)

    return forwarded


def with_labels(
    tensors: LogprobsTensors | None, sampled: Tensor, labels: Labels, logprobs: Tensor
) -> LogprobsTensors:
    """Returns the tensors that other requests asked for, with the labels in their rows.

    tensors: [requests, columns], None when no other request asked. sampled: [requests].
    logprobs: [rows with labels, vocabulary]. A row with labels holds the sampled token first.
    """
    width = 1 + max(map(len, labels.values()))
    if tensors is None:
        tensors = _nothing(len(sampled), width)
    ids, values = _widened(tensors.logprob_token_ids, width, 0), _widened(tensors.logprobs, width)
    rows, firsts = list(labels), sampled[list(labels)].tolist()
    # Pad rows with fewer labels by the sampled token, which changes nothing.
    chosen = torch.tensor(
        [
            [first, *tokens, *[first] * (width - 1 - len(tokens))]
            for first, tokens in zip(firsts, labels.values(), strict=True)
        ]
    )
    read = logprobs.gather(1, chosen)
    values[rows] = -torch.inf
    ids[rows, :width], values[rows, :width] = chosen.to(ids.dtype), read
    ranks = tensors.selected_token_ranks
    ranks[rows] = (logprobs >= read[:, :1]).sum(1).to(ranks.dtype)
    return LogprobsTensors(ids, values, ranks)


def _nothing(rows: int, columns: int) -> LogprobsTensors:
    return LogprobsTensors(
        torch.zeros(rows, columns, dtype=torch.int32),
        torch.full((rows, columns), -torch.inf),
        torch.zeros(rows, dtype=torch.int32),
    )


def _widened(tensor: Tensor, columns: int, fill: float = -torch.inf) -> Tensor:
    """Returns the tensor with at least that many columns."""
    missing = max(0, columns - tensor.shape[1])
    return torch.nn.functional.pad(tensor, (0, missing), value=fill)
