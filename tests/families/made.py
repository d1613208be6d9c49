"""Model folders of the families: the real tokenizer and chat template, and the real architecture
with random weights of a small size. Owns their sizes. Tests nothing itself."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.families import sources, vocabularies

CONTEXT = 2048
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
}


@dataclass(frozen=True)
class Family:
    """One family of models.

    architecture: its model type in Transformers. vocabulary: writes its tokenizer into a folder.
    template: the name of its chat template among TEMPLATES, empty if the tokenizer's package has
    it. ends: the ids that its generation configuration ends answers with. config: further fields of
    its configuration. options: of the server, for tools and reasoning. reasons: whether its
    template can switch reasoning on and off.
    """

    name: str
    architecture: str
    vocabulary: Callable[[Path], None]
    template: str
    ends: tuple[int, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    reasons: bool = False


def _tools(parser: str) -> tuple[str, ...]:
    return ("--enable-auto-tool-choice", "--tool-call-parser", parser)


QWEN = Family(
    "qwen3",
    "qwen3",
    lambda folder: vocabularies.write_qwen(sources.QWEN, folder),
    "qwen3.jinja",
    ends=(151645, 151643),
    config={"tie_word_embeddings": True, "rope_theta": 1000000.0},
    options=(*_tools("hermes"), "--reasoning-parser", "qwen3"),
    reasons=True,
)
LLAMA = Family(
    "llama3",
    "llama",
    lambda folder: vocabularies.write_llama(sources.LLAMA, folder),
    "llama3_2.jinja",
    ends=(128001, 128008, 128009),
    config={"tie_word_embeddings": True, "rope_theta": 500000.0},
    options=_tools("llama3_json"),
)
GEMMA = Family(
    "gemma3",
    "gemma3_text",
    # The package's eos_token ends a turn; the model's publisher has the end of a text instead.
    lambda folder: vocabularies.write_shipped(sources.GEMMA, folder, eos_token="<eos>"),
    "gemma3.jinja",
    ends=(1, 106),
    config={
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 32,
    },
)
MISTRAL = Family(
    "mistral",
    "mistral",
    lambda folder: vocabularies.write_shipped(sources.MISTRAL, folder),
    "",
    ends=(2,),
    config={"tie_word_embeddings": False, "sliding_window": None},
    options=_tools("mistral"),
)
GPT_OSS = Family(
    "gpt-oss",
    "gpt_oss",
    lambda folder: vocabularies.write_shipped(sources.GPT_OSS, folder),
    "gptoss.jinja",
    ends=(200002, 199999, 200012),
)
FAMILIES = {family.name: family for family in (QWEN, LLAMA, GEMMA, MISTRAL, GPT_OSS)}
SERVED = (QWEN, LLAMA, GEMMA, MISTRAL)
"""GPT_OSS's format can be derived, but its answers cannot be replaced: it is refused at start."""


def tokenizer_folder(family: Family) -> Path:
    """Returns the folder of its tokenizer and chat template, cached for the user."""
    folder = sources.CACHE / f"{family.name}-tokenizer"
    sources.CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        done = folder / "done"
        if not done.is_file():
            folder.mkdir(exist_ok=True)
            family.vocabulary(folder)
            if family.template:
                template = sources.TEMPLATES.read(f"trl/chat_templates/{family.template}")
                (folder / "chat_template.jinja").write_bytes(template)
            done.touch()
    return folder


def model_folder(family: Family, folder: Path) -> Path:
    """Writes a model of the family to `folder`, with reproducible random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(family))
    config = AutoConfig.for_model(
        family.architecture,
        # Padded as published models are: some tokenizers have an id past their vocabulary.
        vocab_size=-(-len(tokenizer) // 64) * 64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(family.ends),
        pad_token_id=tokenizer.pad_token_id,
        **{**_SMALL, **family.config},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    for file in tokenizer_folder(family).iterdir():
        if file.name != "done":
            (folder / file.name).write_bytes(file.read_bytes())
    generation = {"eos_token_id": list(family.ends), "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    return folder
