"""Trains the practice model from scratch: plain PyTorch, one pass, a few minutes on two cores.
Owns the training loop and the files written. Does not know the world (corpus.py).
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from refine.practice.corpus import Example, examples
from refine.practice.recipe import (
    CONTEXT_LENGTH,
    IM_END,
    IM_START,
    MANIFEST,
    SHAPE,
    TRAINING,
    Shape,
    Training,
    settings,
)
from refine.practice.tokenizer import CHAT_TEMPLATE, train_tokenizer

_FIRST_TOKEN_WEIGHT = 4.0
"""A reply's first token decides it (yes or no, comply or decline), so it has more weight."""
_HASHED = 2_000
_POOL = 4_096
"""How many examples are sorted by length together, so that batches have little padding."""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids, with a loss weight for each position (0: not trained on)."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """Right-padded examples. ids, weights: [batch, length]."""

    ids: torch.Tensor
    weights: torch.Tensor


def train(
    out: Path,
    seed: int = TRAINING.seed,
    training: Training = TRAINING,
    shape: Shape = SHAPE,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains a model and its tokenizer and writes both to `out`, with a manifest.

    report: called with each progress line.
    """
    training = replace(training, seed=seed)
    started = time.monotonic()
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    encoded = [encode(e, tokenizer) for e in examples(training.examples, seed)]
    batches = list(make_batches(encoded, training, tokenizer.pad_token_id))
    report(f"{len(encoded)} examples, {len(batches)} batches, {time.monotonic() - started:.0f} s")
    model = LlamaForCausalLM(model_config(tokenizer, shape))
    _fit(model, batches, training, report)
    _save(model, tokenizer, out, seed, time.monotonic() - started)


def model_config(tokenizer: PreTrainedTokenizerFast, shape: Shape = SHAPE) -> LlamaConfig:
    """Returns the recipe's configuration."""
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )


def encode(example: Example, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Encodes an example as the chat template renders it, cut to the context length."""
    ids: list[int] = []
    weights: list[float] = []
    for turn in example.turns:
        head = tokenizer.encode(f"{IM_START}{turn.role}\n")
        body = tokenizer.encode(turn.content + IM_END)
        tail = tokenizer.encode("\n")
        ids += head + body + tail
        turn_ids = (
            [_FIRST_TOKEN_WEIGHT] + [1.0] * (len(body) - 1) if turn.learned else [0.0] * len(body)
        )
        weights += [0.0] * len(head) + turn_ids + [0.0] * len(tail)
    return Encoded(ids[:CONTEXT_LENGTH], weights[:CONTEXT_LENGTH])


def recipe_hash() -> str:
    """Returns the SHA-256 of the model's inputs: settings, chat template and first examples."""
    digest = hashlib.sha256(json.dumps(settings(), sort_keys=True).encode())
    digest.update(CHAT_TEMPLATE.encode())
    for example in examples(_HASHED, TRAINING.seed):
        digest.update(repr(example).encode())
    return digest.hexdigest()


def make_batches(encoded: list[Encoded], training: Training, pad_token_id: int) -> Iterator[Batch]:
    """Yields batches of examples of similar length, with at most `batch_tokens` each, padded."""
    rng = random.Random(training.seed)
    for start in range(0, len(encoded), _POOL):
        pool = sorted(encoded[start : start + _POOL], key=lambda e: len(e.ids))
        groups = list(_groups(pool, training.batch_tokens))
        rng.shuffle(groups)
        for group in groups:
            yield _pad(group, pad_token_id)


def _groups(pool: list[Encoded], batch_tokens: int) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    for item in pool:
        if group and len(item.ids) * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(item)
    yield group


def _pad(group: list[Encoded], pad_token_id: int) -> Batch:
    length = max(len(item.ids) for item in group)
    ids = torch.full((len(group), length), pad_token_id)
    weights = torch.zeros(len(group), length)
    for row, item in enumerate(group):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        weights[row, : len(item.weights)] = torch.tensor(item.weights)
    return Batch(ids, weights)


def _fit(
    model: LlamaForCausalLM,
    batches: list[Batch],
    training: Training,
    report: Callable[[str], None],
) -> None:
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=training.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, len(batches), training.warmup_steps)
    )
    started, recent = time.monotonic(), 0.0
    for step, batch in enumerate(batches, start=1):
        loss = batch_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent += loss.item()
        if step % 50 == 0:
            report(
                f"step {step}/{len(batches)} loss {recent / 50:.4f} "
                f"{time.monotonic() - started:.0f} s"
            )
            recent = 0.0


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Returns the weighted cross-entropy of the trained tokens, a scalar.

    Only trained positions go through the output layer, which is a fifth of the model's work.
    """
    weights = batch.weights[:, 1:]
    learned = weights > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[learned])
    losses = cross_entropy(logits.float(), batch.ids[:, 1:][learned], reduction="none")
    return (losses * weights[learned]).sum() / weights[learned].sum()


def _rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    return min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))


def _save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    seed: int,
    seconds: float,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.bfloat16()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(IM_END),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    weights = (out / "model.safetensors").read_bytes()
    manifest = {
        "recipe_sha256": recipe_hash(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "seed": seed,
        **settings(),
        "training_seconds": round(seconds),
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
