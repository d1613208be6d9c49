"""Training: a few steps lower the loss, the written model loads, and the same seed repeats."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from refine.practice.corpus import examples
from refine.practice.reader import Reader
from refine.practice.recipe import Shape, Training
from refine.practice.tokenizer import train_tokenizer
from refine.practice.train import batch_loss, encode, make_batches, model_config, train

TINY = Shape(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=32,
)
SHORT = Training(examples=64, batch_tokens=1_024, warmup_steps=2)


def test_batches_hold_every_example_once_within_the_budget() -> None:
    tokenizer = train_tokenizer()
    encoded = [encode(example, tokenizer) for example in examples(200, seed=0)]
    batches = list(make_batches(encoded, SHORT, tokenizer.pad_token_id))
    assert sum(len(batch.ids) for batch in batches) == 200
    assert all(batch.ids.numel() <= 1_024 or len(batch.ids) == 1 for batch in batches)
    learned = sum(sum(weight > 0 for weight in e.weights) for e in encoded)
    assert sum(int((batch.weights > 0).sum()) for batch in batches) == learned


def test_training_writes_a_model_that_loads_and_repeats(tmp_path: Path) -> None:
    lines: list[str] = []
    train(tmp_path / "one", training=SHORT, shape=TINY, report=lines.append)
    train(tmp_path / "two", training=SHORT, shape=TINY)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert lines
    assert all(torch.equal(one[name], two[name]) for name in one)
    answers = Reader.load(tmp_path / "one").answers([({"role": "user", "content": "Hi"},)])
    assert len(answers) == 1


def test_only_learned_positions_count() -> None:
    tokenizer = train_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(model_config(tokenizer, TINY)).float()
    encoded = [encode(example, tokenizer) for example in examples(4, seed=0)]
    (batch, *_) = make_batches(encoded, SHORT, tokenizer.pad_token_id)
    before = batch_loss(model, batch)
    last = batch.ids.shape[1] - 1
    batch.ids[batch.weights[:, last] == 0, last] = 7
    assert torch.equal(before, batch_loss(model, batch))
