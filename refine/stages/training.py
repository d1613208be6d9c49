"""How a training is started in a process of its own. Owns the plan, and the choice of one process
or several. Does not train (train.py).
"""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from refine.errors import TrainingFailed
from refine.files import write_atomically


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


async def run_training(plan: TrainPlan) -> None:
    """Trains in a new process, on all GPUs or the CPU. Returns when training is done.

    Cancelling the caller stops the training. Raises TrainingFailed; the reason is on standard
    error.
    """
    path = Path(plan.checkpoints).with_suffix(".json")
    write_atomically(path, json.dumps(asdict(plan), indent=2) + "\n")
    gpus = _gpus()
    launcher = ["-m", "accelerate.commands.launch", f"--num_processes={gpus}"] if gpus > 1 else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, *launcher, "-m", "refine.stages.train", str(path)
    )
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if code:
        raise TrainingFailed(f"The training ended with exit code {code}; its output says why")


def _gpus() -> int:
    # Imported here because it takes seconds, and nothing else here needs it.
    import torch

    return torch.cuda.device_count()
