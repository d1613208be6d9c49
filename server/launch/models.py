"""The models with a short name, as in `setback serve smollm2`. Owns their names, the vLLM options
that suit them, and everyday requests that each can answer. Does not convert SmolLM2 (smollm2.py) or
know the models of registered worlds (refine/world.py). vLLM resolves any other name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from guard.calibration import Calibration, Scales
from guard.prompts import CritiqueStyle
from guard.windows import DEFAULT_VERDICT_TOKENS
from refine.world import find_world, world_names
from server.launch import smollm2
from server.launch.shipped import ShippedAdapter

_MIB = 1024**2


def _ordinary(n: int) -> list[str]:
    """Returns `n` of the bundled everyday requests in English, repeating them as needed."""
    text = files("refine").joinpath("ordinary.txt").read_text(encoding="utf-8")
    return list(islice(cycle(text.strip().split("\n")), n))


@dataclass(frozen=True)
class NamedModel:
    """A model with a short name.

    served_model_name: the name that clients use. prepare: takes the folder for models and returns
    the model's own, creating it if needed; raises ValueError. options: vLLM options, unless the
    command line sets them. critique: its critique style. verdict_tokens: the most tokens of an
    answer that one verdict covers. reminder: whether it answers better with the reminder.
    adapter: installed at its first start. everyday: returns that many requests it can answer.
    world: the registered world it belongs to.
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
    # With the reminder it preaches in reply to everyday requests.
    reminder=False,
    adapter=ShippedAdapter(
        Path(str(files("refine.seed").joinpath("adapter"))),
        CritiqueStyle.LABEL,
        Scales(Calibration(0.820, 0.284), Calibration(0.820, 0.284)),
        rows=2034,
    ),
)
DEFAULT = SMOLLM2.name


def names() -> list[str]:
    """Returns the short names."""
    return [SMOLLM2.name, *world_names()]


def named_model(name: str) -> NamedModel | None:
    """Returns the model with that short name, or None."""
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
    """Returns the model with that short name, or a folder or Hub name for vLLM to resolve."""
    return named_model(name) or NamedModel(name, name, lambda _models_dir: Path(name))
