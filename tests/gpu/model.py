"""A Llama model and adapters with random weights, as large as an 8B model or small. Their answers
are noise: they show what the guard costs and that it works, never how well it judges.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from guard.adapter_config import CONFIG, WEIGHTS
from refine.practice.recipe import MODEL_DIR

_TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "generation_config*")


@dataclass(frozen=True)
class Size:
    """The dimensions of a Llama model. context: in tokens."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    context: int


LLAMA_8B = Size(4096, 14336, 32, 32, 8, 8192)
SMALL = Size(64, 128, 2, 2, 1, 2048)


def write_model(folder: Path, size: Size) -> Path:
    """Writes the weights in bfloat16, and the practice model's tokenizer and chat template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=size.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for pattern in _TOKENIZER_FILES:
        for file in MODEL_DIR.glob(pattern):
            shutil.copy(file, folder / file.name)
    return folder


def write_adapter(folder: Path, size: Size, seed: int, rank: int = 8) -> Path:
    """Writes a PEFT adapter of every query projection that changes the model's answers."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(size.layers):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for factor, shape in (("A", (rank, size.hidden)), ("B", (size.hidden, rank))):
            tensors[f"{module}.lora_{factor}.weight"] = rng.normal(0, 0.1, shape).astype("float32")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS)
    return folder
