"""Stage 4: trains the next adapter with PEFT, in a process of its own.

Owns tokenisation (by the guard's own ChatFormat, so that training and serving use the same tokens),
the loss, the trainer's arguments, resuming after a kill and the adapter's final rename into place.
Does not choose examples (dataset.py), judge the adapter (gate.py) or start the process
(training.py).

    python -m refine.stages.train PLAN.json
    torchrun --nproc-per-node 2 -m refine.stages.train PLAN.json      (several processes)
"""

import json
import math
import os
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from guard import prompts
from guard.template import ChatFormat
from guard.vllm.cpu.processor import bfloat16_is_slow
from refine.stages.dataset import Example, Kind, read_examples
from refine.stages.training import TrainPlan

_NICENESS = 10
_SAVE_STEPS = 40
_LABEL_TOKENS = 4
_MAX_TOKENS_PER_PART = 4096
_GROUP = 4
_POOL_GROUPS = 200
"""The number of groups that are sorted by length together."""
_REPLAY_WEIGHT = 10.0
"""Divergences are small where they matter, so without a weight the labels would dominate."""
_IGNORE_INDEX = -100
_BASE_RATE, _BASE_WIDTH, _WIDTH_POWER = 1e-4, 4096, 1.08
"""A usual LoRA learning rate for a model of some billion parameters. The power was measured on the
practice model, whose hidden size of 256 needs 2e-3."""
_UPPER_HALF_FACTOR = 2.5
"""The factor for training half of the layers; measured on SmolLM2 (docs/align.md)."""
_FURTHER_FACTOR = 0.5
"""The factor for training on from an adapter; measured on SmolLM2 (docs/refine.md)."""

Row = Mapping[str, list[int]]


def train(plan: TrainPlan) -> Path:
    """Trains in this process and returns the adapter's directory. Resumes from a checkpoint."""
    out = Path(plan.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    processes = PartialState(cpu=not torch.cuda.is_available())
    # A training that survived its job may still be running: wait for it and use its result.
    lock = FileLock(f"{plan.checkpoints}.lock") if processes.is_main_process else nullcontext()
    with lock:
        # Behind the lock, so that all processes see the same.
        processes.wait_for_everyone()
        if not out.exists():
            _train(plan, out)
    return out


def _train(plan: TrainPlan, out: Path) -> None:
    set_seed(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(plan.base)
    model = load_base(plan)
    max_length = min(plan.max_length, model.config.max_position_embeddings)
    rows = encode(read_examples(Path(plan.dataset)), tokenizer, max_length, plan.chat_template)
    rows = in_length_groups(rows, min(_GROUP, plan.batch_size), plan.seed)
    trainer = ExampleTrainer(
        model=with_adapter(model, plan),
        args=_settings(plan, model.config.hidden_size, in_bfloat16=model.dtype == torch.bfloat16),
        train_dataset=rows,
        data_collator=collate,
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(plan))
    if trainer.accelerator.is_main_process:
        save_adapter(trainer.model, out)


def encode(
    examples: Iterable[Example],
    tokenizer: Any,
    max_length: int,
    chat_template: str | None = None,
) -> list[Row]:
    """Returns token ids and labels of each example; only the completion has labels. Examples that
    are too long are dropped.

    The base model's ordinary answers are marked as replayed: see ExampleTrainer.
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
        completion = chat_format.encode(example.completion)
        # A label may be followed by more text, so it has no end of turn.
        if example.kind not in (Kind.LABEL, Kind.CRITERION):
            completion.append(chat_format.end_of_turn)
        if len(prompt) + len(completion) <= max_length:
            labels = [_IGNORE_INDEX] * len(prompt) + completion
            replayed = [int(example.kind is Kind.HELP)]
            rows.append(
                {"input_ids": [*prompt, *completion], "labels": labels, "replayed": replayed}
            )
    return rows


def in_length_groups(rows: Sequence[Row], size: int, seed: int) -> list[Row]:
    """Orders the rows so that each group of `size` has similar lengths, and separates labels, texts
    and replayed answers: the cost of a group is that of its longest row.

    A batch holds several groups drawn at random. A batch of one length would train that all texts
    of that length are alike, for example that short texts are harmful if most in a set are.
    The order is fixed before training, so that a resumed training continues with rows it has not
    seen.
    """
    rng = random.Random(f"batches {seed}")
    shuffled = rng.sample(list(rows), len(rows))
    groups = []
    for start in range(0, len(shuffled), _POOL_GROUPS * size):
        pool = shuffled[start : start + _POOL_GROUPS * size]
        pool.sort(
            key=lambda row: (
                row["replayed"],
                _trained_tokens(row) > _LABEL_TOKENS,
                len(row["input_ids"]),
            )
        )
        groups += [pool[offset : offset + size] for offset in range(0, len(pool), size)]
    # Only the last pool can end in a smaller group. Elsewhere it would shift all groups after it.
    partial_group = [groups.pop()] if groups and len(groups[-1]) < size else []
    rng.shuffle(groups)
    return [row for group in (*groups, *partial_group) for row in group]


def _trained_tokens(row: Row) -> int:
    return sum(label != _IGNORE_INDEX for label in row["labels"])


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Returns a batch, padded on the left, so that all completions end at the same position."""
    longest = max(len(row["input_ids"]) for row in rows)

    def column(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([[filler] * (longest - len(row[name])) + row[name] for row in rows])

    input_ids = column("input_ids", 0)
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(longest) >= longest - lengths).long(),
        "labels": column("labels", _IGNORE_INDEX),
        "replayed": torch.tensor([row["replayed"] for row in rows]),
    }


def split_batch(batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Yields a padded batch group by group, without unneeded padding."""
    lengths = batch["attention_mask"].sum(dim=1)
    for start in range(0, len(lengths), _GROUP):
        group = slice(start, start + _GROUP)
        longest = int(lengths[group].max())
        # A column with one value per row is kept whole.
        columns = {name: column[group, -longest:] for name, column in batch.items()}
        size = max(1, _MAX_TOKENS_PER_PART // longest)
        for offset in range(0, len(columns["input_ids"]), size):
            yield {name: column[offset : offset + size] for name, column in columns.items()}


class ExampleTrainer(Trainer):
    """A Trainer in which every example has the same weight, whether its completion is a label or a
    long answer, and which computes logits only where there are labels.

    A replayed answer trains the base model's distribution over the vocabulary at each token, not
    only the sampled token. This keeps a small model from forgetting how to answer while it learns
    the rest of the batch.

    A single process splits each batch into parts whose gradients add up to the same: a group of
    similar length at a time, with fewer rows if they are long, so that memory is bounded by tokens,
    not by examples.
    """

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], *options: Any, **more: Any
    ) -> torch.Tensor:
        """Returns the batch's loss after adding its gradients."""
        # Processes exchange gradients at every step, so all must make the same number of steps.
        parts = [inputs] if self.args.world_size > 1 else split_batch(inputs)
        rows = len(inputs["input_ids"])
        losses = []
        for part in parts:
            part_inputs: dict[str, Any] = {**part, "share": len(part["input_ids"]) / rows}
            losses.append(super().training_step(model, part_inputs, *options, **more))
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], *_options: Any, **_more: Any
    ) -> torch.Tensor:
        """Returns the mean of the examples' losses, times their share of the batch. An example's
        loss is the mean per token, or the sum for a label, whose category must not weaken it."""
        labels: torch.Tensor = inputs.pop("labels")
        replayed: torch.Tensor = inputs.pop("replayed")[:, 0].bool()
        share: float = inputs.pop("share")
        trained = labels != _IGNORE_INDEX
        first = int(trained.any(dim=0).int().argmax())
        # By index: for a slice PyTorch would copy the vocabulary's weights for every row.
        positions = torch.arange(first - 1, labels.shape[1] - 1, device=labels.device)
        logits = model(**inputs, logits_to_keep=positions).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2),
            labels[:, first:],
            ignore_index=_IGNORE_INDEX,
            reduction="none",
        )
        if replayed.any():
            replayed_inputs = {name: column[replayed] for name, column in inputs.items()}
            # Unwrapped: another process may have no replayed row in this batch.
            unwrapped = self.accelerator.unwrap_model(model)
            with torch.no_grad(), unwrapped.disable_adapter():
                base_logits = unwrapped(**replayed_inputs, logits_to_keep=positions).logits
            divergences = divergence(base_logits, logits[replayed])
            losses[replayed] = _REPLAY_WEIGHT * divergences.where(trained[replayed, first:], 0)
        tokens = trained.sum(dim=1)
        tokens[tokens <= _LABEL_TOKENS] = 1
        return share * (losses.sum(dim=1) / tokens).mean()


def divergence(base_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Returns the Kullback-Leibler divergence of the model from the base model, in nats.

    base_logits, logits: (..., vocabulary). Returns (...).
    """
    base, model = (values.float().log_softmax(dim=-1) for values in (base_logits, logits))
    return torch.nn.functional.kl_div(model, base, reduction="none", log_target=True).sum(dim=-1)


def learning_rate(plan: TrainPlan, hidden_size: int) -> float:
    """Returns the plan's rate or the default: higher for narrower models and for fewer layers,
    lower for training on from an adapter."""
    if plan.learning_rate is not None:
        return plan.learning_rate
    ratio = _BASE_WIDTH / hidden_size
    rate = _BASE_RATE * math.pow(ratio, _WIDTH_POWER)
    if plan.start is not None:
        rate *= _FURTHER_FACTOR
    return rate * _UPPER_HALF_FACTOR if plan.upper_half else rate


def load_base(plan: TrainPlan) -> Any:
    """Returns the base model, in bfloat16 unless the processor is slow at it."""
    in_bfloat16 = torch.cuda.is_available() or not bfloat16_is_slow()
    return AutoModelForCausalLM.from_pretrained(
        plan.base, dtype=torch.bfloat16 if in_bfloat16 else torch.float32
    )


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
    """Returns the names of a layer's linear modules; PEFT's "all-linear" adapts all layers."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )


def _settings(plan: TrainPlan, hidden_size: int, *, in_bfloat16: bool) -> TrainingArguments:
    devices = max(PartialState().num_processes, torch.cuda.device_count())
    return TrainingArguments(
        output_dir=plan.checkpoints,
        per_device_train_batch_size=max(1, plan.batch_size // devices),
        learning_rate=learning_rate(plan, hidden_size),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps or -1,
        warmup_steps=0.05,
        lr_scheduler_type="linear",
        seed=plan.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=in_bfloat16,
        # On a CPU recomputing activations would only cost time: the examples are short.
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
    checkpoint: str | None = get_last_checkpoint(plan.checkpoints)
    return checkpoint


def save_adapter(model: Any, out: Path) -> None:
    """Writes to a temporary directory, then renames it, so that no partial adapter remains."""
    temporary = out.with_name(out.name + ".part")
    # TRL adds an adapter of its own as the reference.
    model.save_pretrained(temporary, safe_serialization=True, selected_adapters=["default"])
    os.replace(temporary, out)


def main(arguments: Sequence[str]) -> None:
    """Trains as the plan in a JSON file says, the only argument. The server that this process may
    run beside goes first."""
    os.nice(_NICENESS)
    fields: Mapping[str, Any] = json.loads(Path(arguments[0]).read_text())
    train(TrainPlan(**fields))


if __name__ == "__main__":
    main(sys.argv[1:])
