"""Loads the evaluation data of a run: ordinary requests, the gate's sets and its ground truth. No
traffic can change these. Owns their choice for real models, and the user's files. A model with a
world of its own brings its own (world.py).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from guard import prompts
from refine.benchmarks.formats import read_set
from refine.critic import Critic
from refine.errors import DataInvalid
from refine.evaluation.judge import JudgeTruth
from refine.evaluation.labelled_file import with_file
from refine.evaluation.sets import DRAFTS, PAIRS, Labelled
from refine.evaluation.truth import ReferenceTruth, Reliability, Truth, reliability
from refine.files import cache_key, cached, read_lines
from refine.options import RefineOptions
from refine.room import sets_that_fit
from refine.seed import corpus, criteria, examples
from refine.seed.sets import corpus_sets
from refine.served import Model, ServedInfo
from refine.world import EvaluationData, find_world


async def load_evaluation_data(
    info: ServedInfo, model: Model, options: RefineOptions, references: Sequence[Critic]
) -> EvaluationData:
    """Loads the data of the served model's world or the seed corpus, with the user's files.

    references: critics that no run changes. The best of them on the sets' labelled answers checks
    the training data and, unless the options name a judge, provides the gate's ground truth.
    Raises ServerUnavailable, and DataInvalid when one of the files is malformed.
    """
    world = find_world(info.world) if info.world is not None else None
    if world:
        data = world.evaluation_data()
    else:
        data = await _default_data(info, model, options, references)
    if options.replay_file is not None:
        data = replace(data, ordinary=_file_requests(options.replay_file))
    if options.gate_file is not None:
        data = replace(
            data,
            sets=with_file(data.sets, options.gate_file),
            criterion_rows=read_set("jsonl", options.gate_file).rows,
        )
    sets, too_long = await sets_that_fit(model, data.sets, info.max_model_len)
    return replace(data, sets=sets, too_long=too_long)


async def _default_data(
    info: ServedInfo, model: Model, options: RefineOptions, references: Sequence[Critic]
) -> EvaluationData:
    sets = corpus_sets()
    labelled, drafts = (
        [case for case in sets.pairs if case.group == group] for group in (PAIRS, DRAFTS)
    )
    candidates = [
        (await _reliability(info, model, options, reference, labelled), reference)
        for reference in references
    ]
    best_reliability, critic = max(candidates, key=lambda candidate: candidate[0].informedness)
    truth: Truth = ReferenceTruth(model, critic)
    on_drafts = await _reliability(info, model, options, critic, drafts)
    if options.judge_url is not None and options.judge_model is not None:
        key = options.judge_api_key.get_secret_value() if options.judge_api_key else None
        truth = JudgeTruth(options.judge_url, options.judge_model, key)
        best_reliability = await reliability(truth, labelled)
        on_drafts = await reliability(truth, drafts)
    wrappers = [wrapper.template for wrapper in corpus.wrappers("align")]
    return EvaluationData(
        corpus_requests,
        wrappers,
        sets,
        truth,
        critic,
        best_reliability,
        on_drafts,
        rehearsal=examples.rehearsal,
        rules=criteria.of_corpus,
    )


async def _reliability(
    info: ServedInfo,
    model: Model,
    options: RefineOptions,
    reference: Critic,
    labelled: Sequence[Labelled],
) -> Reliability:
    """Returns how reliable a reference is, cached: neither it nor the labelled answers change. The
    name tells apart the adapters of two databases by their calibrations."""
    about = [
        info.model_revision,
        reference.name,
        prompts.VERSION,
        [asdict(one) for one in labelled],
    ]
    return await cached(
        options.work_dir / "references" / f"{cache_key(about)}.json",
        Reliability,
        lambda: reliability(ReferenceTruth(model, reference), labelled),
    )


def corpus_requests(n: int, seed: int) -> list[str]:
    """Draws single-turn requests: ordinary ones, and harmless twins of harmful ones."""
    ordinary = [item.messages for item in corpus.ordinary("align")]
    twins = [pair.benign for pair in corpus.pairs("align")]
    requests = [messages[0]["content"] for messages in (*ordinary, *twins) if len(messages) == 1]
    return _draw(requests, n, seed)


def _file_requests(path: Path) -> Callable[[int, int], list[str]]:
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataInvalid(f"refine.replay_file: {path} cannot be read: {error}") from error
    requests = [line.strip() for line in lines if line.strip()]
    if not requests:
        raise DataInvalid(f"refine.replay_file: {path} has no requests; write one a line")
    return lambda n, seed: _draw(requests, n, seed)


def _draw(requests: list[str], n: int, seed: int) -> list[str]:
    """Draws `n` requests evenly: each one once before any is repeated."""
    rng = random.Random(f"ordinary {seed}")
    result: list[str] = []
    while len(result) < n:
        result += rng.sample(requests, len(requests))
    return result[:n]
