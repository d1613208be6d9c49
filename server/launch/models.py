"""The models that are served by a short name: `setback serve smollm2`. Owns their names, the
options of vLLM's that suit them, and ordinary requests that each can answer. How SmolLM2's folder
is made is smollm2.py's, a registered world brings its model along (refine/world.py), and any other
name is vLLM's to resolve.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from guard.calibration import Calibration
from guard.prompts import CritiqueStyle
from guard.windows import DEFAULT_VERDICT_TOKENS
from refine.world import find_world, world_names
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
    force from its first start on. everyday: so many requests that it can answer. world: a
    registered one that it lives in.
    """

    name: str
    served_model_name: str
    prepare: Callable[[Path], Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    critique: CritiqueStyle = CritiqueStyle.YES_NO
    verdict_tokens: int = DEFAULT_VERDICT_TOKENS
    reminder: bool = True
    adapter: ShippedAdapter | None = None
    everyday: Callable[[int], list[str]] = _ordinary
    world: str | None = None


SMOLLM2 = NamedModel(
    "smollm2",
    "smollm2",
    smollm2.prepare,
    options={"kv_cache_memory_bytes": 2048 * _MIB},
    critique=CritiqueStyle.TONE,
    # Reminded, it answers everyday requests with a sermon.
    reminder=False,
    adapter=ShippedAdapter(
        Path(str(files("refine.seed").joinpath("adapter"))),
        CritiqueStyle.LABEL,
        Calibration(1.0, 0.0),
        rows=0,
    ),
)
DEFAULT = SMOLLM2.name


def names() -> list[str]:
    """The short names."""
    return [SMOLLM2.name, *world_names()]


def named_model(name: str) -> NamedModel | None:
    """The model of that short name, or None."""
    if name == SMOLLM2.name:
        return SMOLLM2
    world = find_world(name)
    if world is None:
        return None
    return NamedModel(
        name,
        world.served_model_name,
        lambda _models_dir: world.folder(),
        options=world.options,
        verdict_tokens=world.verdict_tokens,
        everyday=world.everyday,
        world=name,
    )


def find_model(name: str) -> NamedModel:
    """The model of that short name, else one that vLLM finds by it: a folder or a hub's name."""
    return named_model(name) or NamedModel(name, name, lambda _models_dir: Path(name))
