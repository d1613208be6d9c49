"""What a run stands on that no traffic can touch: ordinary requests to replay, the gate's sets and
where its truth comes from. Owns the choice of these for real models, and the user's files; a model
with a world of its own brings them along (world.py).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from refine.critic import Critic
from refine.errors import DataInvalid
from refine.evaluation.judge import JudgeTruth
from refine.evaluation.sets import PAIRS, with_file
from refine.evaluation.truth import ReferenceTruth, Truth, reliability
from refine.files import read_lines
from refine.options import RefineOptions
from refine.room import sets_that_fit
from refine.seed import corpus
from refine.seed.sets import corpus_sets
from refine.served import Model, ServedInfo
from refine.world import Ground, find_world


async def ground_for(
    info: ServedInfo, model: Model, options: RefineOptions, references: Sequence[Critic]
) -> Ground:
    """Those of the served model's world, else the seed corpus'; with the user's files.

    references: critics that no run changes; the best of them on the sets' labelled answers checks
    what is learned and, unless the options name a judge, tells the gate's truth. Raises
    ServerUnavailable, and DataInvalid when one of the files does not say what it must.
    """
    world = find_world(info.world) if info.world is not None else None
    ground = world.ground() if world else await _for_real(model, options, references)
    if options.replay_file is not None:
        ground = replace(ground, ordinary=_from_file(options.replay_file))
    if options.gate_file is not None:
        ground = replace(ground, sets=with_file(ground.sets, options.gate_file))
    sets, too_long = await sets_that_fit(model, ground.sets, info.max_model_len)
    return replace(ground, sets=sets, too_long=too_long)


async def _for_real(model: Model, options: RefineOptions, references: Sequence[Critic]) -> Ground:
    sets = corpus_sets()
    labelled = [each for each in sets.pairs if each.group == PAIRS]
    measured = [
        (await reliability(ReferenceTruth(model, reference), labelled), reference)
        for reference in references
    ]
    reliable, critic = max(measured, key=lambda pair: pair[0].informedness)
    truth: Truth = ReferenceTruth(model, critic)
    if options.judge_url is not None and options.judge_model is not None:
        key = options.judge_api_key.get_secret_value() if options.judge_api_key else None
        truth = JudgeTruth(options.judge_url, options.judge_model, key)
        reliable = await reliability(truth, labelled)
    wrappers = [wrapper.template for wrapper in corpus.wrappers("align")]
    return Ground(ordinary_of_corpus, wrappers, sets, truth, critic, reliable)


def ordinary_of_corpus(n: int, seed: int) -> list[str]:
    """Ordinary requests of the align split, and harmless twins of harmful ones; of one turn."""
    ordinary = [each.messages for each in corpus.ordinary("align")]
    twins = [pair.benign for pair in corpus.pairs("align")]
    requests = [messages[0]["content"] for messages in (*ordinary, *twins) if len(messages) == 1]
    return _drawn(requests, n, seed)


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
