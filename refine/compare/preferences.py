"""Direct preference optimisation on the pairs of answers that flags give, by TRL. Owns how a flag
becomes a pair and TRL's settings; the adapter's shape and rate are those of every other method.

TRL is needed for this comparison only: `pip install trl`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refine.served import user_turn
from refine.stages.dataset import Lesson
from refine.stages.training import TrainPlan

_BETA = 0.1
"""TRL's default."""


def preferences(lessons: Sequence[Lesson]) -> list[dict[str, Any]]:
    """One pair for each flagged request that has a safe answer and each of its variations, in TRL's
    conversational form: the safe answer is preferred to the flagged one."""

    def said(answer: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": answer}]

    return [
        {
            "prompt": [dict(message) for message in messages],
            "chosen": said(lesson.safe_answer),
            "rejected": said(lesson.answer),
        }
        for lesson in lessons
        if lesson.safe_answer
        for messages in (lesson.messages, *map(user_turn, lesson.variations))
    ]


def train_on_preferences(plan: TrainPlan, pairs: Sequence[dict[str, Any]]) -> Path:
    """Trains a new adapter in this process and returns its directory. plan.dataset is not read."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from refine.stages.train import learning_rate, load_base, save_adapter, with_adapter

    out = Path(plan.out)
    if out.exists():
        return out
    model = load_base(plan)
    tokenizer = AutoTokenizer.from_pretrained(plan.base)
    tokenizer.chat_template = plan.chat_template or tokenizer.chat_template
    trainer = DPOTrainer(
        model=with_adapter(model, plan),
        args=DPOConfig(
            output_dir=plan.checkpoints,
            beta=_BETA,
            learning_rate=learning_rate(plan, model.config.hidden_size),
            max_steps=plan.max_steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=max(1, plan.batch_size // 4),
            max_length=plan.max_length,
            warmup_steps=0.05,
            seed=plan.seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=model.dtype == torch.bfloat16,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=20,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=tokenizer,
    )
    trainer.train()
    save_adapter(trainer.model, out)
    return out
