"""How the sampler of vLLM's CPU backend (0.32) reads labels: only in the rows of requests that name
them, next to what others ask for. Owns that reading; backend.py installs it.

vLLM's own way computes log-probabilities and ranks for the whole batch as soon as one request has
`logprob_token_ids`, and gives its columns to all, so that who asked for `top_logprobs` in the same
step gets none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors

Labels = Mapping[int, Sequence[int]]
"""By row of the batch, the token ids to read."""

_WHOLE_VOCABULARY = -1


def reading_labels(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A sampler's `forward` that reads labels apart from all else."""

    @wraps(forward)
    def forwarded(
        sampler: Any, logits: Tensor, sampling_metadata: Any, *more: Any, **options: Any
    ) -> Any:
        labels = sampling_metadata.logprob_token_ids
        if not labels or sampling_metadata.max_num_logprobs == _WHOLE_VOCABULARY:
            return forward(sampler, logits, sampling_metadata, *more, **options)
        # Before anything is sampled, which may change the logits in place.
        logprobs = logits[list(labels)].log_softmax(dim=-1, dtype=torch.float32)
        others = replace(sampling_metadata, logprob_token_ids=None)
        output = forward(sampler, logits, others, *more, **options)
        sampled = output.sampled_token_ids.flatten()
        tensors = with_labels(output.logprobs_tensors, sampled, labels, logprobs)
        return replace(output, logprobs_tensors=tensors)

    return forwarded


def with_labels(
    found: LogprobsTensors | None, sampled: Tensor, labels: Labels, logprobs: Tensor
) -> LogprobsTensors:
    """What others asked for, and in the rows of the labels the sampled token and these.

    found: [requests, columns], None when nobody asked. sampled: [requests].
    logprobs: [rows with labels, vocabulary].
    """
    width = 1 + max(map(len, labels.values()))
    if found is None:
        found = _nothing(len(sampled), width)
    ids, values = _widened(found.logprob_token_ids, width, 0), _widened(found.logprobs, width)
    rows, firsts = list(labels), sampled[list(labels)].tolist()
    # Repeating the sampled token where a row has fewer labels changes nothing.
    chosen = torch.tensor(
        [
            [first, *tokens, *[first] * (width - 1 - len(tokens))]
            for first, tokens in zip(firsts, labels.values(), strict=True)
        ]
    )
    read = logprobs.gather(1, chosen)
    values[rows] = -torch.inf
    ids[rows, :width], values[rows, :width] = chosen.to(ids.dtype), read
    ranks = found.selected_token_ranks
    ranks[rows] = (logprobs >= read[:, :1]).sum(1).to(ranks.dtype)
    return LogprobsTensors(ids, values, ranks)


def _nothing(rows: int, columns: int) -> LogprobsTensors:
    return LogprobsTensors(
        torch.zeros(rows, columns, dtype=torch.int32),
        torch.full((rows, columns), -torch.inf),
        torch.zeros(rows, dtype=torch.int32),
    )


def _widened(each: Tensor, columns: int, fill: float = -torch.inf) -> Tensor:
    """[rows, columns or more]."""
    missing = max(0, columns - each.shape[1])
    return torch.nn.functional.pad(each, (0, missing), value=fill)
