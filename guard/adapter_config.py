"""Checks whether the engine computes what a PEFT adapter needs. Owns the fields of PEFT's
configuration, the names and shapes of its weights, and the messages that refuse an adapter. Does
not read the manifest (adapter_files.py) or derive the base model's shapes (base_shapes.py).

vLLM refuses some of what it does not compute and silently ignores the rest: fields it does not
know, weights of layers the base model lacks, and weights smaller than the base model's.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.errors import AdapterRefused

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

Shapes = Mapping[str, frozenset[tuple[int, int]]]
"""Input and output sizes by layer_name(); modules of different sizes may share a name."""

_UNSUPPORTED = {
    "alora_invocation_tokens": "aLoRA (alora_invocation_tokens)",
    "arrow_config": "Arrow routing (arrow_config)",
    "ensure_weight_tying": "adapters of tied weights (ensure_weight_tying)",
    "kasa_config": "KaSA (kasa_config)",
    "layer_replication": "replicated layers (layer_replication)",
    "lora_bias": "a bias of its own (lora_bias)",
    "modules_to_save": "whole modules (modules_to_save)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
    "target_parameters": "adapted parameters (target_parameters)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "use_bdlora": "BD-LoRA (use_bdlora)",
    "use_dora": "DoRA (use_dora)",
    "use_qalora": "QALoRA (use_qalora)",
}
"""What changes an answer and is more than the product of two low-rank matrices."""

_NO_EFFECT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
        *("revision", "task_type", "runtime_config"),
        # How the adapter was trained.
        *("corda_config", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config"),
        *("megatron_core", "qalora_group_size", "velora_config"),
        # Where the weights go, which the tensor names say as well.
        *("exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform"),
        "target_modules",
    }
)
_SUPPORTED = frozenset({"alpha_pattern", "lora_alpha", "r", "rank_pattern", "use_rslora"})
_PLAIN_INITS = frozenset({"eva", "gaussian", "lora_ga", "mica", "orthogonal"})
"""Other named initialisations change the base weights, which the engine serves unchanged."""

_TENSOR_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<kind>lora(?:_embedding)?)_(?P<side>[AB])(?:\.weight)?"
)
_MERGE_ADVICE = "merge it into the base, or train a plain LoRA adapter"


def check_adapter(path: Path, name: str, base: Shapes | None = None) -> int:
    """Returns the largest rank of the PEFT adapter in `path`.

    name: how messages call the adapter. base: the modules of its base model, if known.
    Raises AdapterRefused for an adapter that the engine would not apply as PEFT does.
    """
    config = _config(path, name)
    _check_fields(config, name)
    _check_tensors(_shapes(path, name), config, name, base)
    return _largest_rank(config)


def _config(path: Path, name: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text("utf-8"))
        if config.get("peft_type") != "LORA":
            raise AdapterRefused(f"{name} is not a LoRA adapter of PEFT")
        if _largest_rank(config) < 1:
            raise ValueError("its rank is not positive")
        float(config.get("lora_alpha", 8))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterRefused(f"{name}: {CONFIG} is not one that PEFT writes: {error}") from error
    return config


def _largest_rank(config: Mapping[str, Any]) -> int:
    return max(int(rank) for rank in (config["r"], *(config.get("rank_pattern") or {}).values()))


def _check_fields(config: Mapping[str, Any], name: str) -> None:
    for field, value in sorted(config.items()):
        if not value or field in _NO_EFFECT | _SUPPORTED:
            continue
        if field in _UNSUPPORTED:
            raise AdapterRefused(
                f"{name} has {_UNSUPPORTED[field]}, which is not served; {_MERGE_ADVICE}"
            )
        if field == "bias":
            _check_bias(value, name)
        elif field == "init_lora_weights":
            _check_init(value, name)
        else:
            raise AdapterRefused(
                f"{name}: {CONFIG} sets {field}, which this version does not know; if it changes "
                f"nothing in what the adapter computes, take it out, else {_MERGE_ADVICE}"
            )


def _check_bias(value: object, name: str) -> None:
    if value != "none":
        raise AdapterRefused(
            f"{name} has trained biases (bias: {value}), which are not served; {_MERGE_ADVICE}"
        )


def _check_init(value: object, name: str) -> None:
    if isinstance(value, str) and value.lower() not in _PLAIN_INITS:
        raise AdapterRefused(
            f"{name} was trained on a base that its start changed (init_lora_weights: {value}); "
            "save it with PEFT's path_initial_model_for_weight_conversion"
        )


def _shapes(path: Path, name: str) -> dict[str, list[int]]:
    """Returns each tensor's shape, from the file's header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / WEIGHTS, framework="numpy") as tensors:
            return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AdapterRefused(f"{name}: {WEIGHTS} cannot be read: {error}") from error


def _check_tensors(
    shapes: Mapping[str, list[int]], config: Mapping[str, Any], name: str, base: Shapes | None
) -> None:
    modules: dict[tuple[str, str], dict[str, list[int]]] = {}
    for tensor, shape in shapes.items():
        match = _TENSOR_NAME.fullmatch(tensor)
        if tensor.endswith(".base_layer.weight"):
            raise AdapterRefused(
                f"{name}: {WEIGHTS} holds the base's own {tensor}, which would be passed over; if "
                "the base is unchanged, save it with PEFT's save_embedding_layers=False"
            )
        if match is None or len(shape) != 2:
            raise AdapterRefused(
                f"{name}: {WEIGHTS} holds {tensor}, which is not served; {_MERGE_ADVICE}"
            )
        modules.setdefault((match["module"], match["kind"]), {})[match["side"]] = shape
    if not modules:
        raise AdapterRefused(f"{name}: {WEIGHTS} holds no weights")
    for (module, _), pair in sorted(modules.items()):
        rank = _rank_of(module, config)
        if pair.keys() != {"A", "B"} or pair["A"][0] != rank or pair["B"][1] != rank:
            raise AdapterRefused(
                f"{name}: the weights of {module} are not a pair of rank {rank}, as {CONFIG} says"
            )
        if base is not None:
            _check_module(module, (pair["A"][1], pair["B"][0]), name, base)


def _check_module(module: str, shape: tuple[int, int], name: str, base: Shapes) -> None:
    # Base models store experts as modules or as one fused tensor, so names cannot be compared.
    if ".experts." in module:
        return
    known_sizes = base.get(layer_name(module))
    if known_sizes is None:
        raise AdapterRefused(f"{name} adapts {module}, which the served model does not have")
    if shape not in known_sizes:
        sizes = " or ".join(f"{inputs} to {outputs}" for inputs, outputs in sorted(known_sizes))
        raise AdapterRefused(
            f"{name} adapts {module} from {shape[0]} to {shape[1]} values; the served model's is "
            f"from {sizes}"
        )


def layer_name(module: str) -> str:
    """Returns the part of a module's name that does not depend on the enclosing modules."""
    _, separator, after = module.rpartition("layers.")
    return separator + after if separator else module.rpartition(".")[2]


def _rank_of(module: str, config: Mapping[str, Any]) -> int:
    """Returns a module's rank as PEFT does: by the first pattern that ends the module's name."""
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return int(rank)
    return int(config["r"])
