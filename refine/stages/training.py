"""What a training is told, and how it is started as a process of its own. Owns the plan and the
choice of one process or several; train.py is what runs there.
"""

import asyncio
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from refine.errors import TrainingFailed
from refine.files import write_atomically


@dataclass(frozen=True)
class TrainPlan:
    """One training, complete: the same plan gives the same adapter on the same machine, or nearly
    the same when it was killed on the way and went on.

    base: path or hub id. dataset: a JSONL of examples. out: the adapter's directory, which exists
    only once training is done. checkpoints: where a killed training goes on from. start: the
    adapter directory to train on from, None for a new one. learning_rate: None for the default of
    the model's width. max_steps: 0 for as many as `epochs` makes. upper_half: a new adapter changes
    only the upper half of the layers, which takes two thirds of the time. chat_template: Jinja,
    where the server was told another one than the model's own.
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
    """Trains in a process of its own, on every GPU there is, or the CPU; returns when it is done.

    A caller that is cancelled ends the training. Raises TrainingFailed; the reason is on standard
    error.
    """
    path = Path(plan.checkpoints).with_suffix(".json")
    write_atomically(path, json.dumps(asdict(plan), indent=2) + "\n")
    gpus = _gpus()
    launcher = ["-m", "accelerate.commands.launch", f"--num_processes={gpus}"] if gpus > 1 else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, *launcher, "-m", "refine.stages.train", str(path), env=_beside_a_server()
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
    # Imported late: nobody else here needs it, and it takes seconds.
    import torch

    return torch.cuda.device_count()


def _beside_a_server() -> dict[str, str]:
    """An environment that leaves the server a core: threads that fight for one stand still."""
    cores = len(os.sched_getaffinity(0))
    return {"OMP_NUM_THREADS": str(max(1, cores - 1)), **os.environ}
