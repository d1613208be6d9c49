"""The committed practice model: its name, and the check that its files are intact. Loads nothing
(transformers and vLLM do). recipe.py and train.py define how it was made.
"""

import hashlib
import json
from pathlib import Path

from refine.practice.recipe import MANIFEST

MODEL_NAME = "setback-practice"
"""The name that clients use."""

_WEIGHTS = "model.safetensors"
_FILES = (_WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json")


class PracticeModelDamaged(ValueError):
    """A file of the model is missing or is not the committed one."""


def check_model(folder: Path) -> None:
    """Raises PracticeModelDamaged, which names the file, unless the weights match the manifest and
    the other files exist."""
    try:
        digest = json.loads((folder / MANIFEST).read_text("utf-8"))["weights_sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder / MANIFEST, "cannot be read") from error
    for name in _FILES:
        if not (folder / name).is_file():
            raise _damaged(folder / name, "is missing")
    if hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest() != digest:
        raise _damaged(folder / _WEIGHTS, "was altered")


def _damaged(path: Path, problem: str) -> PracticeModelDamaged:
    return PracticeModelDamaged(
        f"{path} {problem}; restore it with `git checkout refine/practice/model`, "
        "or serve another model with `setback serve MODEL`"
    )
