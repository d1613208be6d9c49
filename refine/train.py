"""Stage 4: trains the next adapter with TRL and PEFT, as a process of its own.

Owns tokenising (by the guard's own ChatFormat, so that training sees the tokens that serving
sees), the trainer's settings, resuming after a kill and the adapter's last rename into place.
Does not know where examples come from (dataset.py) or whether the adapter is any good (gate.py);
training.py starts it.

    python -m refine.train PLAN.json
    accelerate launch -m refine.train PLAN.json      (several GPUs)
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from filelock import FileLock
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from guard.processor import bfloat16_is_slow
from guard.template import ChatFormat
from refine.dataset import Example, read_examples
from refine.training import TrainPlan

_SAVE_STEPS = 40
_IGNORED = -100
_BASE_RATE, _BASE_WIDTH, _WIDTH_POWER = 1e-4, 4096, 1.08
"""A usual LoRA rate for a model of some billion parameters; the power was measured on the practice
model, whose hidden size of 256 wants 2e-3."""


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
    tokenizer = AutoTokenizer.from_pretrained(plan.base)
    model = AutoModelForCausalLM.from_pretrained(
        plan.base, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32
    )
    room = min(plan.max_length, model.config.max_position_embeddings)
    rows = encode(read_examples(Path(plan.dataset)), tokenizer, room)
    trainer = SFTTrainer(
        model=_with_start(model, plan),
        args=_trainer_settings(plan, model.config.hidden_size),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=None if plan.start else _lora(plan),
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(plan))
    if trainer.accelerator.is_main_process:
        _save(trainer.model, out)


def encode(
    examples: Iterable[Example], tokenizer: Any, max_length: int
) -> list[dict[str, list[int]]]:
    """Token ids and labels of each example; only its completion is learned. Long ones left out."""
    chat_format = ChatFormat(tokenizer)
    rows = []
    for example in examples:
        prompt = chat_format.conversation([dict(message) for message in example.prompt])
        said = [*chat_format.encode(example.completion), chat_format.end_of_turn]
        if len(prompt) + len(said) <= max_length:
            labels = [_IGNORED] * len(prompt) + said
            rows.append({"input_ids": [*prompt, *said], "labels": labels})
    return rows


def learning_rate(plan: TrainPlan, hidden_size: int) -> float:
    """The plan's, or the default: narrower models take a higher one."""
    if plan.learning_rate is not None:
        return plan.learning_rate
    wider = _BASE_WIDTH / hidden_size
    return _BASE_RATE * math.pow(wider, _WIDTH_POWER)


def _with_start(model: Any, plan: TrainPlan) -> Any:
    if plan.start is None:
        return model
    return PeftModel.from_pretrained(model, plan.start, is_trainable=True)


def _lora(plan: TrainPlan) -> LoraConfig:
    return LoraConfig(
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _trainer_settings(plan: TrainPlan, hidden_size: int) -> SFTConfig:
    gpus = max(1, torch.cuda.device_count())
    return SFTConfig(
        output_dir=plan.checkpoints,
        per_device_train_batch_size=max(1, plan.batch_size // gpus),
        learning_rate=learning_rate(plan, hidden_size),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps or -1,
        warmup_steps=0.05,
        lr_scheduler_type="linear",
        max_length=None,
        seed=plan.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available() or not bfloat16_is_slow(),
        # The examples are short: recomputing activations would only cost time.
        gradient_checkpointing=torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
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
