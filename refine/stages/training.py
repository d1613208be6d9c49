"""How a training is started in a process of its own, or by the operator's command. Owns the plan,
and the choice of one process or several. Does not train (train.py).
"""

import asyncio
import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from refine.errors import TrainingFailed
from refine.files import write_atomically

PLAN = "{plan}"
"""Where a command line has the plan's path."""


@dataclass(frozen=True)
class TrainPlan:
    """Everything that a training depends on. The same plan gives the same adapter on the same
    machine, or nearly the same if the training was killed and resumed.

    base: a path or Hub id. dataset: a JSONL of examples. out: the adapter's directory, which exists
    only when training is done. checkpoints: from which a killed training resumes. start: the
    adapter directory to train from, None for a new adapter. learning_rate: None for the default of
    the model's width. max_steps: 0 for as many as `epochs` needs. upper_half: a new adapter changes
    only the upper half of the layers, which takes two thirds of the time. chat_template: Jinja, if
    it is not the model's own.
    """

    base: str
    dataset: str
    out: str
    checkpoints: str
    start: str | None
    rank: int
    learning_rate: float | None
    epochs: float
    batch_size: int
    max_length: int
    seed: int
    max_steps: int = 0
    upper_half: bool = False
    chat_template: str | None = None


async def run_training(plan: TrainPlan, command: str | None = None) -> None:
    """Trains in a new process, on all GPUs or the CPU. Returns when training is done.

    command: a command line that trains instead, in which {plan} stands for the plan's path; it must
    return only when the training is done. Cancelling the caller stops the training, by SIGTERM.
    Raises TrainingFailed; the reason is on standard error.
    """
    path = Path(plan.checkpoints).with_suffix(".json")
    write_atomically(path, json.dumps(asdict(plan), indent=2) + "\n")
    words = _default_command() if command is None else shlex.split(command)
    try:
        process = await asyncio.create_subprocess_exec(
            *(word.replace(PLAN, str(path.absolute())) for word in words)
        )
    except OSError as error:
        raise TrainingFailed(f"The training cannot be started: {error}") from error
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if code:
        raise TrainingFailed(f"The training ended with exit code {code}; its output says why")
    _check_result(Path(plan.out))


def _check_result(adapter: Path) -> None:
    if not adapter.is_dir():
        raise TrainingFailed(
            f"The training ended without an adapter in {adapter}; if it ran on another machine, "
            "that folder must be shared with it"
        )


def _default_command() -> list[str]:
    gpus = _gpus()
    launcher = ["-m", "accelerate.commands.launch", f"--num_processes={gpus}"] if gpus > 1 else []
    return [sys.executable, *launcher, "-m", "refine.stages.train", PLAN]


def _gpus() -> int:
    # Imported here because it takes seconds, and nothing else here needs it.
    import torch

    return torch.cuda.device_count()
