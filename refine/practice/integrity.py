"""The committed practice model as something to serve: its name, and whether its files are whole.
Loads nothing (transformers and vLLM do); how it was made is recipe.py's and train.py's.
"""

import hashlib
import json
from pathlib import Path

from refine.practice.recipe import MANIFEST

MODEL_NAME = "setback-practice"
"""What clients call it."""

_WEIGHTS = "model.safetensors"
_FILES = (_WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json")


class PracticeModelDamaged(ValueError):
    """A file of the model is missing or not the one that was committed."""


def check_model(folder: Path) -> None:
    """Raises PracticeModelDamaged, naming the file, unless the weights are those that the manifest
    names and what goes with them is there."""
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
