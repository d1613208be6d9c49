"""The models that are served by a name of ours: `setback serve smollm2`. Owns their names, the
options of vLLM's that suit them, and ordinary requests that each can answer. How SmolLM2's folder
is made is smollm2.py's; any other name is vLLM's to resolve.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from guard.prompts import CritiqueStyle
from guard.windows import DEFAULT_VERDICT_TOKENS
from refine.practice.integrity import MODEL_NAME, check_model
from refine.practice.recipe import MODEL_DIR
from server.launch import smollm2
from server.launch.shipped import ShippedAdapter

_MIB = 1024**2


def _ordinary(n: int) -> list[str]:
    """The bundled ordinary requests in English, as often as needed."""
    text = files("refine").joinpath("ordinary.txt").read_text(encoding="utf-8")
    return list(islice(cycle(text.strip().split("\n")), n))


@dataclass(frozen=True)
class NamedModel:
    """served_as: the name that clients use. prepare: from the folder for models to the model's own
    folder, made where that is needed; raises ValueError. options: vLLM's, where the command line
    leaves them out. critique: how its verdicts are read best. verdict_tokens: the most of an answer
    that one verdict bears. reminder: whether guided answering does it good. adapter: the one in
    force from its first start on. everyday: so many requests that it can answer.
    """

    name: str
    served_as: str
    prepare: Callable[[Path], Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    critique: CritiqueStyle = CritiqueStyle.YES_NO
    verdict_tokens: int = DEFAULT_VERDICT_TOKENS
    reminder: bool = True
    adapter: ShippedAdapter | None = None
    everyday: Callable[[int], list[str]] = _ordinary


def _practice_folder(_models_dir: Path) -> Path:
    check_model(MODEL_DIR)
    return MODEL_DIR


def _practice_requests(n: int) -> list[str]:
    from refine.practice.world import Kind, requests

    return [str(each.messages[-1]["content"]) for each in requests(Kind.EVERYDAY, "train", n)]


PRACTICE = NamedModel(
    "practice",
    MODEL_NAME,
    _practice_folder,
    # vLLM's default would reserve nearly all memory on a CPU, for a model of 8 MB.
    options={
        "kv_cache_memory_bytes": 512 * _MIB,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    },
    # Its answers are of 25 to 47 tokens, and it was never trained to judge longer ones.
    verdict_tokens=48,
    everyday=_practice_requests,
)
SMOLLM2 = NamedModel(
    "smollm2",
    "smollm2",
    smollm2.prepare,
    options={"kv_cache_memory_bytes": 2048 * _MIB},
    critique=CritiqueStyle.TONE,
    # Reminded, it answers everyday requests with a sermon.
    reminder=False,
)
NAMED = {model.name: model for model in (PRACTICE, SMOLLM2)}
DEFAULT = PRACTICE


def find_model(name: str) -> NamedModel:
    """The model of that name of ours, else one that vLLM finds by it: a folder or a hub's name."""
    return NAMED.get(name) or NamedModel(name, name, lambda _models_dir: Path(name))
