"""The practice world as registered in the entry point group `setback.worlds`: how its model is
served, and its evaluation data. Does not define the world itself (world.py).
"""

from pathlib import Path

from refine.practice.evaluation_data import OracleTruth, ordinary, practice_sets
from refine.practice.integrity import MODEL_NAME, check_model
from refine.practice.recipe import MODEL_DIR
from refine.practice.training_wrappers import TRAINING_WRAPPERS
from refine.practice.world import Kind, requests
from refine.world import EvaluationData, World

_MIB = 1024**2


def _folder() -> Path:
    check_model(MODEL_DIR)
    return MODEL_DIR


def _everyday(n: int) -> list[str]:
    return [str(request.messages[-1]["content"]) for request in requests(Kind.EVERYDAY, "train", n)]


def _evaluation_data() -> EvaluationData:
    return EvaluationData(ordinary, TRAINING_WRAPPERS, practice_sets(), OracleTruth())


WORLD = World(
    MODEL_NAME,
    _folder,
    # Its answers have 25 to 47 tokens, and it was never trained to judge longer ones.
    verdict_tokens=48,
    everyday=_everyday,
    evaluation_data=_evaluation_data,
    # On a CPU, vLLM's default would reserve nearly all memory for a model of 8 MB.
    options={
        "kv_cache_memory_bytes": 512 * _MIB,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    },
)
