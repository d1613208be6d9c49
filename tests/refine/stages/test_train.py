"""The trainer on the practice model: what it trains on, and that a kill loses nothing."""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from refine.errors import TrainingFailed
from refine.practice.recipe import MODEL_DIR
from refine.stages.dataset import Example, Kind, read_examples, write_dataset
from refine.stages.training import PLAN, TrainPlan, run_training

pytestmark = pytest.mark.slow

STEPS = 60


@pytest.fixture
def plan(tmp_path: Path) -> TrainPlan:
    """A training of many short steps."""
    examples = [
        Example(Kind.SAFE, ({"role": "user", "content": f"How do I tend plant {n}?"},), "Water it.")
        for n in range(64)
    ]
    dataset = write_dataset(tmp_path / "dataset", examples, {})
    return TrainPlan(
        base=str(MODEL_DIR),
        dataset=str(dataset.path),
        out=str(tmp_path / "adapter"),
        checkpoints=str(tmp_path / "checkpoints"),
        start=None,
        rank=4,
        learning_rate=1e-3,
        epochs=1,
        batch_size=4,
        max_length=128,
        seed=1,
        max_steps=STEPS,
    )


def losses(capfd: pytest.CaptureFixture[str]) -> list[float]:
    """Returns the losses printed since the last call, one for every 20 steps."""
    return [float(loss) for loss in re.findall(r"'loss': '([\d.]+)'", capfd.readouterr().out)]


def weights(path: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(Path(path) / "adapter_model.safetensors")


@pytest.mark.full
def test_a_killed_training_goes_on_from_its_checkpoint(
    plan: TrainPlan, capfd: pytest.CaptureFixture[str]
) -> None:
    kill_at_checkpoint(plan)
    assert not Path(plan.out).exists()
    capfd.readouterr()
    asyncio.run(run_training(plan))
    resumed = losses(capfd)
    whole = replace(plan, out=f"{plan.out}-whole", checkpoints=f"{plan.checkpoints}-whole")
    asyncio.run(run_training(whole))
    uninterrupted = losses(capfd)
    assert (len(resumed), len(uninterrupted)) == (1, 3)
    # Each logged loss is a mean over the steps since the last one.
    assert resumed[-1] == pytest.approx(uninterrupted[-1], rel=0.1)
    assert weights(plan.out).keys() == weights(whole.out).keys()


def kill_at_checkpoint(plan: TrainPlan) -> None:
    """Kills the trainer once it has saved a checkpoint."""
    path = Path(plan.checkpoints).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(plan)))
    trainer = subprocess.Popen([sys.executable, "-m", "refine.stages.train", str(path)])
    deadline = time.monotonic() + 300
    while not list(Path(plan.checkpoints).glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        assert trainer.poll() is None
        time.sleep(0.01)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()


def test_a_training_that_fails_leaves_no_adapter(plan: TrainPlan, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="exit code 1"):
        asyncio.run(run_training(replace(plan, base=str(tmp_path / "no model"))))
    assert not Path(plan.out).exists()


def test_groups_hold_rows_of_one_length_each_row_once_and_the_same_for_a_seed() -> None:
    from refine.stages.train import in_length_groups

    rng = random.Random(0)
    rows = [
        {"input_ids": [n] * rng.randint(1, 200), "labels": [], "replayed": [0]}
        for n in range(1, 330)
    ]
    order = in_length_groups(rows, 4, seed=3)
    assert order == in_length_groups(rows, 4, seed=3) != in_length_groups(rows, 4, seed=4)
    assert sorted(row["input_ids"][0] for row in order) == list(range(1, 330))
    lengths = [len(row["input_ids"]) for row in order]
    groups = [lengths[at : at + 4] for at in range(0, len(lengths), 4)]
    padding = sum(max(group) * len(group) - sum(group) for group in groups)
    assert padding < 0.05 * sum(lengths)
    assert [len(group) for group in groups[:-1]] == [4] * 82
    means = [sum(group) / len(group) for group in groups]
    assert sum(abs(one - other) for one, other in pairwise(means)) > 40 * len(means)


def test_a_batch_is_trained_in_parts_without_unneeded_padding() -> None:
    from refine.stages.train import collate, split_batch

    rows = [
        {"input_ids": [n] * length, "labels": [n] * length, "replayed": [0]}
        for n, length in enumerate((3, 4, 4, 4, 90, 91, 92, 93, 2000, 1999, 1998, 1997), start=1)
    ]
    parts = list(split_batch(collate(rows)))
    shapes = [tuple(part["input_ids"].shape) for part in parts]
    assert shapes == [(4, 4), (4, 93), (2, 2000), (2, 2000)]
    assert [int(part["attention_mask"].sum()) for part in parts] == [15, 366, 3999, 3995]
    assert parts[0]["input_ids"][0].tolist() == [0, 1, 1, 1]


def test_gradients_of_parts_equal_those_of_the_whole_batch(
    plan: TrainPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from refine.stages import train

    short = replace(plan, max_steps=3)
    train.train(short)
    monkeypatch.setattr(train, "_MAX_TOKENS_PER_PART", 40)
    parts = replace(short, out=f"{plan.out}-parts", checkpoints=f"{plan.checkpoints}-parts")
    train.train(parts)
    losses = re.findall(r"'train_loss': '([\d.]+)'", capsys.readouterr().out)
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=0.01)
    whole, divided = (
        torch.cat([w.float().flatten() for name, w in weights(out).items() if "lora_B" in name])
        for out in (short.out, parts.out)
    )
    # Adam takes whole steps even where a gradient near zero is only a rounding error.
    assert torch.cosine_similarity(whole, divided, dim=0) > 0.9


def test_replayed_answers_lead_a_model_back_to_its_base(plan: TrainPlan, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from refine.stages import train

    examples = [replace(example, kind=Kind.HELP) for example in read_examples(Path(plan.dataset))]
    astray = replace(plan, max_steps=20, out=f"{plan.out}-astray")
    replays = replace(
        plan,
        dataset=str(write_dataset(tmp_path / "replays", examples, {}).path),
        checkpoints=f"{plan.checkpoints}-back",
        start=astray.out,
        max_steps=20,
    )
    rows = train.encode(examples[:8], AutoTokenizer.from_pretrained(MODEL_DIR), 128)
    batch = train.collate(rows)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    apart = []
    for trained in (astray, replays):
        train.train(trained)
        base = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
        model = PeftModel.from_pretrained(base, trained.out)
        with torch.no_grad():
            logits = model(**inputs).logits[:, -4:]
            with model.disable_adapter():
                of_base = model(**inputs).logits[:, -4:]
        apart.append(float(train.divergence(of_base, logits).mean()))
    assert apart[1] < 0.2 * apart[0]


def test_only_completions_are_learned_and_long_examples_left_out() -> None:
    from transformers import AutoTokenizer

    from refine.stages.train import encode

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    prompt = ({"role": "user", "content": "How do I water a garden?"},)
    short = Example(Kind.HELP, prompt, "Fill the can.")
    (row,) = encode([short, replace(short, completion="Fill the can. " * 200)], tokenizer, 256)
    learned = [token for token in row["labels"] if token >= 0]
    assert tokenizer.decode(learned) == "Fill the can.<|im_end|>"
    assert len(row["labels"]) == len(row["input_ids"])
    assert row["input_ids"][-len(learned) :] == learned


TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
TWO_PROCESSES = f"{TORCHRUN} -m refine.stages.train {PLAN}"


def moves(trained: dict[str, Any]) -> torch.Tensor:
    """Returns what a training made of the matrices that begin as zeros."""
    return torch.cat([tensor.flatten() for name, tensor in trained.items() if "lora_B" in name])


@pytest.mark.full
def test_two_processes_train_what_one_does(
    plan: TrainPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan = replace(plan, max_steps=4)
    alone = replace(plan, out=str(tmp_path / "alone"), checkpoints=str(tmp_path / "alone-points"))
    asyncio.run(run_training(plan, TWO_PROCESSES))
    states = {path.name for path in Path(plan.checkpoints).glob("checkpoint-4/rng_state*")}
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}
    asyncio.run(run_training(alone))
    together, single = weights(plan.out), weights(alone.out)
    assert together.keys() == single.keys()
    # Adam moves each weight about equally far, even where the gradient is only a rounding error.
    assert torch.cosine_similarity(moves(together), moves(single), dim=0) > 0.99
    # A run that goes on finds the adapter, in every process.
    asyncio.run(run_training(plan, TWO_PROCESSES))


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (f"true {PLAN}", "without an adapter"),
        (f"test -d {PLAN}", "exit code 1"),
        (f"/no/such/program {PLAN}", "cannot be started"),
    ],
)
def test_a_command_that_does_not_train_fails_the_stage(
    command: str, reason: str, plan: TrainPlan
) -> None:
    with pytest.raises(TrainingFailed, match=reason):
        asyncio.run(run_training(plan, command))
