"""Stage 4: trains the next adapter with PEFT, as a process of its own.

Owns tokenising (by the guard's own ChatFormat, so that training sees the tokens that serving
sees), the loss, the trainer's settings, resuming after a kill and the adapter's last rename into
place. Does not know where examples come from (dataset.py) or whether the adapter is any good
(gate.py); training.py starts it.

    python -m refine.stages.train PLAN.json
    accelerate launch -m refine.stages.train PLAN.json      (several GPUs)
"""

import json
import math
import os
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from guard import prompts
from guard.template import ChatFormat
from guard.vllm.cpu.processor import bfloat16_is_slow
from refine.stages.dataset import Example, Kind, read_examples
from refine.stages.training import TrainPlan

_SAVE_STEPS = 40
_LABEL_TOKENS = 4
_TOKENS_AT_ONCE = 4096
_GROUP = 4
_POOL = 200
"""So many groups are sorted by length together."""
_REPLAY_WEIGHT = 10.0
"""Divergences are small where they matter: without a weight the labels would outweigh them."""
_IGNORED = -100
_BASE_RATE, _BASE_WIDTH, _WIDTH_POWER = 1e-4, 4096, 1.08
"""A usual LoRA rate for a model of some billion parameters; the power was measured on the practice
model, whose hidden size of 256 wants 2e-3."""
_HALF_THE_LAYERS = 2.5
"""Times the rate where half of the layers are adapted; measured on SmolLM2 (docs/align.md)."""

Row = Mapping[str, list[int]]


def train(plan: TrainPlan) -> Path:
    """Trains in this process and returns the adapter's directory. Resumes from a checkpoint."""
    out = Path(plan.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A training that outlived its job may still be at work here: wait for it, then find it done.
    with FileLock(f"{plan.checkpoints}.lock"):
        if not out.exists():
            _train(plan, out)
    return out


def _train(plan: TrainPlan, out: Path) -> None:
    set_seed(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(plan.base)
    in_bfloat16 = torch.cuda.is_available() or not bfloat16_is_slow()
    model = AutoModelForCausalLM.from_pretrained(
        plan.base, dtype=torch.bfloat16 if in_bfloat16 else torch.float32
    )
    room = min(plan.max_length, model.config.max_position_embeddings)
    rows = encode(read_examples(Path(plan.dataset)), tokenizer, room, plan.chat_template)
    rows = in_even_groups(rows, min(_GROUP, plan.batch_size), plan.seed)
    trainer = ExampleTrainer(
        model=with_adapter(model, plan),
        args=_settings(plan, model.config.hidden_size, in_bfloat16=in_bfloat16),
        train_dataset=rows,
        data_collator=padded,
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(plan))
    if trainer.accelerator.is_main_process:
        _save(trainer.model, out)


def encode(
    examples: Iterable[Example],
    tokenizer: Any,
    max_length: int,
    chat_template: str | None = None,
) -> list[Row]:
    """Token ids and labels of each example; only its completion is learned. Long ones left out.

    An ordinary answer of the base's own is replayed: see ExampleTrainer.
    """
    chat_format = ChatFormat(tokenizer, chat_template)
    rows: list[Row] = []
    for example in examples:
        messages = [dict(message) for message in example.prompt]
        if example.after_mark:
            prompt = chat_format.ended(messages, prompts.LABEL_FORM.reply)
        else:
            prompt = chat_format.conversation(messages)
        if example.reminded:
            prompt = chat_format.in_system_turn(prompt, prompts.REMINDER) or prompt
        said = chat_format.encode(example.completion)
        # Of a label that stands alone it is not known what the model would go on with.
        if example.kind is not Kind.LABEL:
            said.append(chat_format.end_of_turn)
        if len(prompt) + len(said) <= max_length:
            labels = [_IGNORED] * len(prompt) + said
            replayed = [int(example.kind is Kind.HELP)]
            rows.append({"input_ids": [*prompt, *said], "labels": labels, "replayed": replayed})
    return rows


def in_even_groups(rows: Sequence[Row], size: int, seed: int) -> list[Row]:
    """The rows in an order in which each group of `size` is of similar length, and rows that learn
    a label, text and replayed answers are apart: a group is computed as long as its longest.

    A batch holds several groups drawn at random. One of a single length would teach that texts of
    its length are alike: where a set's texts are short and mostly harmful, that is what is learned.
    The order is fixed before training, so that a resumed training continues with the rows that it
    has not seen.
    """
    rng = random.Random(f"batches {seed}")
    drawn = rng.sample(list(rows), len(rows))
    groups = []
    for start in range(0, len(drawn), _POOL * size):
        pool = drawn[start : start + _POOL * size]
        pool.sort(
            key=lambda row: (row["replayed"], _learned(row) > _LABEL_TOKENS, len(row["input_ids"]))
        )
        groups += [pool[at : at + size] for at in range(0, len(pool), size)]
    # Only the last pool can end in a smaller group; anywhere else it would move all that follow.
    smaller = [groups.pop()] if groups and len(groups[-1]) < size else []
    rng.shuffle(groups)
    return [row for group in (*groups, *smaller) for row in group]


def _learned(row: Row) -> int:
    return sum(label != _IGNORED for label in row["labels"])


def padded(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """A batch, padded on the left: what is learned stands at the end of every row."""
    longest = max(len(row["input_ids"]) for row in rows)

    def column(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([[filler] * (longest - len(row[name])) + row[name] for row in rows])

    ids = column("input_ids", 0)
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(longest) >= longest - lengths).long(),
        "labels": column("labels", _IGNORED),
        "replayed": torch.tensor([row["replayed"] for row in rows]),
    }


def in_parts(batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """A padded batch, group by group, each without the padding that none of its rows needs."""
    lengths = batch["attention_mask"].sum(dim=1)
    for start in range(0, len(lengths), _GROUP):
        group = slice(start, start + _GROUP)
        longest = int(lengths[group].max())
        # A column of one value a row is kept whole.
        trimmed = {name: column[group, -longest:] for name, column in batch.items()}
        size = max(1, _TOKENS_AT_ONCE // longest)
        for at in range(0, len(trimmed["input_ids"]), size):
            yield {name: column[at : at + size] for name, column in trimmed.items()}


class ExampleTrainer(Trainer):
    """A Trainer for which every example counts alike, whether a label is learned of it or a long
    answer, and that computes the vocabulary's logits only where something is learned.

    A replayed answer teaches the base's distribution over the vocabulary at each token, not only
    the token that was sampled from it. This keeps a small model from forgetting how to answer while
    it learns the rest of the batch.

    A single process takes each batch in parts whose gradients add up to the same: a group of
    similar length at a time, and fewer rows where they are long, so that memory is bounded by
    tokens, not by examples.
    """

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], *options: Any, **more: Any
    ) -> torch.Tensor:
        """The batch's loss, once its gradients were added."""
        # Several processes exchange gradients at every step: each must make as many as the others.
        parts = [inputs] if self.args.world_size > 1 else in_parts(inputs)
        rows = len(inputs["input_ids"])
        losses = []
        for part in parts:
            shared: dict[str, Any] = {**part, "share": len(part["input_ids"]) / rows}
            losses.append(super().training_step(model, shared, *options, **more))
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], *_options: Any, **_more: Any
    ) -> torch.Tensor:
        """The mean of each example's loss, weighted by their share of the batch: the mean loss per
        token, or the sum for a label, whose category must not weaken its verdict."""
        labels: torch.Tensor = inputs.pop("labels")
        replayed: torch.Tensor = inputs.pop("replayed")[:, 0].bool()
        share: float = inputs.pop("share")
        learned = labels != _IGNORED
        first = int(learned.any(dim=0).int().argmax())
        # By index: of a slice PyTorch would copy the vocabulary's weights for every row.
        kept = torch.arange(first - 1, labels.shape[1] - 1, device=labels.device)
        logits = model(**inputs, logits_to_keep=kept).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2),
            labels[:, first:],
            ignore_index=_IGNORED,
            reduction="none",
        )
        if replayed.any():
            rows = {name: column[replayed] for name, column in inputs.items()}
            # Not the wrapper of several processes: another may have no replayed row in this batch.
            plain = self.accelerator.unwrap_model(model)
            with torch.no_grad(), plain.disable_adapter():
                base_logits = plain(**rows, logits_to_keep=kept).logits
            divergences = divergence(base_logits, logits[replayed])
            losses[replayed] = _REPLAY_WEIGHT * divergences.where(learned[replayed, first:], 0)
        tokens = learned.sum(dim=1)
        tokens[tokens <= _LABEL_TOKENS] = 1
        return share * (losses.sum(dim=1) / tokens).mean()


def divergence(base_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The Kullback-Leibler divergence of the model from the base, in nats.

    base_logits, logits: (..., vocabulary); returns (...).
    """
    base, model = (each.float().log_softmax(dim=-1) for each in (base_logits, logits))
    return torch.nn.functional.kl_div(model, base, reduction="none", log_target=True).sum(dim=-1)


def learning_rate(plan: TrainPlan, hidden_size: int) -> float:
    """The plan's, or the default: narrower models take a higher one, and so do fewer layers."""
    if plan.learning_rate is not None:
        return plan.learning_rate
    wider = _BASE_WIDTH / hidden_size
    rate = _BASE_RATE * math.pow(wider, _WIDTH_POWER)
    return rate * _HALF_THE_LAYERS if plan.upper_half else rate


def with_adapter(model: Any, plan: TrainPlan) -> Any:
    """The model with the adapter that the plan starts from, or with a new one."""
    if plan.start is not None:
        return PeftModel.from_pretrained(model, plan.start, is_trainable=True)
    layers = range(model.config.num_hidden_layers)
    config = LoraConfig(
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        target_modules=_linear_names(model),
        layers_to_transform=list(layers[len(layers) // 2 :]) if plan.upper_half else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _linear_names(model: Any) -> list[str]:
    """The names of a layer's linear modules; PEFT takes "all-linear" for all layers only."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )


def _settings(plan: TrainPlan, hidden_size: int, *, in_bfloat16: bool) -> TrainingArguments:
    gpus = max(1, torch.cuda.device_count())
    return TrainingArguments(
        output_dir=plan.checkpoints,
        per_device_train_batch_size=max(1, plan.batch_size // gpus),
        learning_rate=learning_rate(plan, hidden_size),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps or -1,
        warmup_steps=0.05,
        lr_scheduler_type="linear",
        seed=plan.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=in_bfloat16,
        # The examples are short: recomputing activations would only cost time.
        gradient_checkpointing=torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=_SAVE_STEPS,
        save_total_limit=1,
        logging_steps=20,
        report_to="none",
    )


def _last_checkpoint(plan: TrainPlan) -> str | None:
    if not Path(plan.checkpoints).is_dir():
        return None
    found: str | None = get_last_checkpoint(plan.checkpoints)
    return found


def _save(model: Any, out: Path) -> None:
    """Writes beside, then renames: the directory is whole or not there."""
    part = out.with_name(out.name + ".part")
    model.save_pretrained(part, safe_serialization=True)
    os.replace(part, out)


def main(arguments: Sequence[str]) -> None:
    """One argument: the plan's JSON file."""
    fields: Mapping[str, Any] = json.loads(Path(arguments[0]).read_text())
    train(TrainPlan(**fields))


if __name__ == "__main__":
    main(sys.argv[1:])
