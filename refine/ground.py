"""What a run stands on that no traffic can touch: ordinary requests to replay, the gate's sets and
where its truth comes from. Owns the choice between the practice world and real models.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from refine.errors import DataInvalid
from refine.files import read_lines
from refine.measure.sets import Sets, bundled_sets, with_file
from refine.measure.truth import ReferenceTruth, Truth
from refine.options import RefineOptions
from refine.practice.recipe import MODEL_DIR
from refine.served import Model, ServedInfo


@dataclass(frozen=True)
class Ground:
    """ordinary: so many ordinary requests, drawn by a seed. sets, truth: of the gate."""

    ordinary: Callable[[int, int], list[str]]
    sets: Sets
    truth: Truth


def ground_for(info: ServedInfo, model: Model, options: RefineOptions) -> Ground:
    """The practice world's for the practice model, else the bundled one, with the user's files.

    Raises DataInvalid when one of those files does not say what it must.
    """
    ground = _practice() if Path(info.base) == MODEL_DIR else _for_real(model)
    if options.replay_file is not None:
        ground = replace(ground, ordinary=_from_file(options.replay_file))
    if options.gate_file is not None:
        ground = replace(ground, sets=with_file(ground.sets, options.gate_file))
    return ground


def _practice() -> Ground:
    from refine.practice.ground import OracleTruth, ordinary, practice_sets

    return Ground(ordinary, practice_sets(), OracleTruth())


def _for_real(model: Model) -> Ground:
    return Ground(_bundled, bundled_sets(), ReferenceTruth(model))


def _bundled(n: int, seed: int) -> list[str]:
    text = files("refine").joinpath("ordinary.txt").read_text(encoding="utf-8")
    return _drawn(text.strip().split("\n"), n, seed)


def _from_file(path: Path) -> Callable[[int, int], list[str]]:
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataInvalid(f"refine.replay_file: {path} cannot be read: {error}") from error
    requests = [line.strip() for line in lines if line.strip()]
    if not requests:
        raise DataInvalid(f"refine.replay_file: {path} holds no request; write one a line")
    return lambda n, seed: _drawn(requests, n, seed)


def _drawn(requests: list[str], n: int, seed: int) -> list[str]:
    """`n` of them, evenly: each once before any comes again."""
    rng = random.Random(f"ordinary {seed}")
    drawn: list[str] = []
    while len(drawn) < n:
        drawn += rng.sample(requests, len(requests))
    return drawn[:n]
