"""The recipe's constants: the model's shape, its training settings and its location.

Any change here or in the world invalidates the committed model: retrain it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""The committed model, with its tokenizer and manifest."""
MANIFEST = "manifest.json"
CONTEXT_LENGTH = 1024
PAD, IM_START, IM_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, IM_START, IM_END)


@dataclass(frozen=True)
class Shape:
    """The Llama's shape. Weights are bfloat16, embeddings tied."""

    vocab_size: int = 2560
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 64


@dataclass(frozen=True)
class Training:
    """Training settings. batch_tokens includes padding; examples is one pass without repeats."""

    seed: int = 0
    examples: int = 64_000
    batch_tokens: int = 3_072
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05


SHAPE = Shape()
TRAINING = Training()


def settings() -> dict[str, dict[str, float | int]]:
    """Returns shape and training settings, as stored in the manifest."""
    return {"shape": asdict(SHAPE), "training": asdict(TRAINING)}
