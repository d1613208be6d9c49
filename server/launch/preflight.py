"""Checks of a model before vLLM starts. They replace long tracebacks minutes into the start, and
refuse what the guard cannot handle: a missing chat template, an answer format that no refusal fits,
an adapter that the engine would not apply as PEFT does, and on a CPU a KV cache that does not fit
into memory. Owns these checks and their messages. Loads no weights; models that are not in a local
folder yet are not checked.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from guard.adapter_config import Shapes, check_adapter
from guard.base_shapes import base_shapes

_GIB = 1024**3
_MIB = 1024**2
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_MIN_CACHE = 256 * _MIB
_WEIGHTS = ("*.safetensors", "*.bin")
_HARMONY = "gpt_oss"


class ModelUnusable(ValueError):
    """vLLM or the guard cannot serve this model. The message names the option that fixes it."""


@dataclass(frozen=True)
class CacheRequest:
    """The memory that vLLM would use on a CPU.

    cache_bytes: --kv-cache-memory-bytes, or None if vLLM decides. share: of total memory, which
    vLLM then reserves for weights and cache (--gpu-memory-utilization, with vLLM's default).
    max_model_len: in tokens, None for the model's own. bytes_per_value: of weights and cache.
    """

    cache_bytes: int | None
    share: float = 0.92
    max_model_len: int | None = None
    bytes_per_value: int = 2


def check_model(options: argparse.Namespace) -> None:
    """Raises ModelUnusable or AdapterRefused when parsed options of `setback serve` name a model or
    an adapter that cannot be served."""
    from vllm.platforms import current_platform

    folder = Path(options.model_tag)
    check_lora_modules(options.lora_modules or (), folder)
    if not folder.is_dir():
        return
    check_folder(folder)
    if options.chat_template is None:
        check_chat_template(folder)
    if current_platform.is_cpu():
        request = CacheRequest(
            options.kv_cache_memory_bytes,
            options.gpu_memory_utilization,
            options.max_model_len if (options.max_model_len or 0) > 0 else None,
            4 if options.dtype in ("float32", "float") else 2,
        )
        check_cache(folder, request)


def check_folder(folder: Path) -> None:
    """Raises ModelUnusable when the folder is not in Hugging Face's format, or its model's answers
    cannot be guarded."""
    if not (folder / "config.json").is_file():
        raise ModelUnusable(f"{folder} has no config.json; name a folder in Hugging Face's format")
    check_answer_format(_json(folder / "config.json").get("model_type"))


def check_answer_format(model_type: str | None) -> None:
    """Raises ModelUnusable for models whose answers vLLM parses from a format that a refusal would
    not have. model_type: from the model's configuration."""
    if model_type == _HARMONY:
        raise ModelUnusable(
            "gpt-oss answers in Harmony's channels, which vLLM parses from an answer's tokens: a "
            "refusal in its place would not reach the client, so this model cannot be guarded yet; "
            "serve one that answers in plain text, such as Qwen 3, Llama 3, Gemma 3 or Mistral"
        )


def check_lora_modules(modules: Sequence[Any], folder: Path) -> None:
    """Raises AdapterRefused when an adapter of --lora-modules in a local folder would not be
    applied as PEFT does. folder: of the base model, if it is local."""
    local_modules = [module for module in modules if Path(module.path).is_dir()]
    base = _module_shapes(folder) if local_modules else None
    for module in local_modules:
        check_adapter(Path(module.path), f"Adapter {module.name} in {module.path}", base)


def _module_shapes(folder: Path) -> Shapes | None:
    """Returns None if there is no such folder or Transformers does not know the architecture."""
    from transformers import AutoConfig

    if not folder.is_dir():
        return None
    try:
        config = AutoConfig.from_pretrained(folder)
    except ValueError:
        return None
    return base_shapes(config)


def check_chat_template(folder: Path) -> None:
    """Raises ModelUnusable when the folder has no chat template."""
    has_file = any((folder / name).is_file() for name in _TEMPLATE_FILES)
    if not has_file and not _json(folder / "tokenizer_config.json").get("chat_template"):
        raise ModelUnusable(
            f"{folder} has no chat template, which the critique needs; "
            "name a template with --chat-template FILE, or serve the model's instruct version"
        )


def check_cache(folder: Path, request: CacheRequest) -> None:
    """Raises ModelUnusable when weights and KV cache do not fit into the free memory, or the cache
    does not hold one request of full length."""
    memory = psutil.virtual_memory()
    weights = _weights_bytes(folder) * request.bytes_per_value // 2
    if weights > memory.available:
        raise ModelUnusable(
            f"The weights of {folder} take {_gib(weights)}, and {_gib(memory.available)} are free; "
            "serve a smaller model, or free memory"
        )
    suggested = max(_MIN_CACHE, (memory.available - weights) // 2 // _MIB * _MIB)
    option = f"--kv-cache-memory-bytes {suggested // _MIB}M"
    if request.cache_bytes is None:
        reserved = int(memory.total * request.share)
        if reserved > memory.available:
            raise ModelUnusable(
                f"vLLM would reserve {_gib(reserved)} for weights and KV cache, and "
                f"{_gib(memory.available)} are free; pass {option}"
            )
        return
    if request.cache_bytes + weights > memory.available:
        raise ModelUnusable(
            f"A KV cache of {_gib(request.cache_bytes)} beside weights of {_gib(weights)} does not "
            f"fit into the {_gib(memory.available)} that are free; pass {option}"
        )
    _check_full_length(folder, request, request.cache_bytes)


def _check_full_length(folder: Path, request: CacheRequest, cache_bytes: int) -> None:
    config = _json(folder / "config.json")
    per_token = _cache_bytes_per_token(config, request.bytes_per_value)
    length = request.max_model_len or config.get("max_position_embeddings")
    if per_token is None or not length or per_token * length <= cache_bytes:
        return
    raise ModelUnusable(
        f"One request of {length} tokens takes {_gib(per_token * length)} of KV cache, and the "
        f"cache has {_gib(cache_bytes)}; pass --max-model-len {cache_bytes // per_token} or less, "
        "or a larger --kv-cache-memory-bytes"
    )


def _cache_bytes_per_token(config: dict[str, Any], bytes_per_value: int) -> int | None:
    """Returns None for a configuration that lacks the usual attention fields, or whose layers keep
    less than a full cache."""
    try:
        heads = config["num_attention_heads"]
        key_value_heads = config.get("num_key_value_heads") or heads
        head = config.get("head_dim") or config["hidden_size"] // heads
        layers = config["num_hidden_layers"]
    except KeyError:
        return None
    if config.get("sliding_window") or config.get("layer_types"):
        return None
    return int(2 * layers * key_value_heads * head * bytes_per_value)


def _weights_bytes(folder: Path) -> int:
    """Returns the size of the files in the first format found: some folders have two."""
    sizes = (sum(path.stat().st_size for path in folder.glob(pattern)) for pattern in _WEIGHTS)
    return next((size for size in sizes if size), 0)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
