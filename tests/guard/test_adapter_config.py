"""Adapters as users make them: those that the engine applies as PEFT does are accepted, all others
are refused with the reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from guard.adapter_config import CONFIG, WEIGHTS, Shapes, check_adapter
from guard.base_shapes import base_shapes
from guard.errors import AdapterRefused
from refine.practice.recipe import MODEL_DIR
from tests.adapters import write_peft

BASE: Shapes = {
    "layers.0.self_attn.q_proj": frozenset({(8, 8)}),
    "lm_head": frozenset({(8, 32)}),
}


def check(path: Path, base: Shapes | None = BASE) -> int:
    return check_adapter(path, "Adapter 3", base)


@pytest.mark.parametrize("rank", [1, 16, 64])
def test_a_plain_adapter_of_any_rank_is_taken(tmp_path: Path, rank: int) -> None:
    write_peft(tmp_path, rank=rank)
    assert check(tmp_path) == rank


TAKEN: dict[str, dict[str, Any]] = {
    "rsLoRA": {"use_rslora": True},
    "patterns": {"r": 2, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 3}},
    "some layers": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "all linear": {"target_modules": "all-linear", "lora_dropout": 0.1, "bias": "none"},
    "a start without effect": {"init_lora_weights": "gaussian"},
    "no start": {"init_lora_weights": False},
    "a newer PEFT's field that is off": {"use_newlora": False, "newlora_config": None},
    "written down for the trainer": {"task_type": "CAUSAL_LM", "peft_version": "9.9.9"},
}


@pytest.mark.parametrize("kind", TAKEN)
def test_supported_and_ineffective_fields_are_accepted(tmp_path: Path, kind: str) -> None:
    write_peft(tmp_path, **TAKEN[kind])
    assert check(tmp_path) == 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, r"has DoRA \(use_dora\)"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, r"whole modules \(modules_to_save\)"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, r"aLoRA \(alora_invocation_tokens\)"),
    "QALoRA": ({"use_qalora": True}, "QALoRA"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
    "KaSA": ({"kasa_config": {"beta": 1e-4}}, "KaSA"),
    "tokens": ({"trainable_token_indices": [1]}, "trained tokens"),
    "parameters": ({"target_parameters": ["experts.down_proj"]}, "adapted parameters"),
    "replicated layers": ({"layer_replication": [[0, 1], [0, 1]]}, "replicated layers"),
    "biases": ({"bias": "all"}, r"trained biases \(bias: all\)"),
    "LoRA's bias": ({"lora_bias": True}, r"a bias of its own \(lora_bias\)"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights: pissa_niter_16"),
    "a newer PEFT's field": ({"use_newlora": True}, "sets use_newlora, which this version does"),
    "a rank of none": ({"r": 0}, "its rank is not positive"),
    "another rank": ({"r": 2}, "q_proj are not a pair of rank 2"),
    "a pattern's rank": ({"rank_pattern": {"self_attn.q_proj": 8}}, "not a pair of rank 8"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unsupported_fields_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    fields, message = REFUSED[kind]
    write_peft(tmp_path, **fields)
    with pytest.raises(AdapterRefused, match=f"Adapter 3.*{message}"):
        check(tmp_path)


def test_peft_names_no_module_by_the_middle_of_its_name(tmp_path: Path) -> None:
    write_peft(tmp_path, rank_pattern={"q": 8, "self_attn": 8})
    assert check(tmp_path) == 8


ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "a layer that is not there": (
        {"module": "model.layers.7.self_attn.q_proj"},
        r"adapts model.layers.7.self_attn.q_proj, which the served model does not have",
    ),
    "a module that is not there": (
        {"module": "model.layers.0.mlp.up_proj"},
        "which the served model does not have",
    ),
    "a narrower base": ({"shape": (4, 8)}, "from 4 to 8 values; the served model's is from 8 to 8"),
    "a wider base": ({"shape": (8, 16)}, "from 8 to 16 values"),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path, kind: str) -> None:
    fields, message = ELSEWHERE[kind]
    write_peft(tmp_path, **fields)
    with pytest.raises(AdapterRefused, match=message):
        check(tmp_path)
    assert check(tmp_path, base=None) == 4


@pytest.mark.parametrize(
    "module", ["language_model.model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"]
)
def test_enclosing_modules_do_not_matter(tmp_path: Path, module: str) -> None:
    write_peft(tmp_path, module=module)
    assert check(tmp_path) == 4


STRANGE = {
    "DoRA's": "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    "a whole module": "base_model.model.lm_head.weight",
    "a bias": "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
    "half a pair": "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_weights_that_are_not_a_pair_are_refused(tmp_path: Path, kind: str) -> None:
    write_peft(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS) | {STRANGE[kind]: np.zeros((4, 8), np.float32)}
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(AdapterRefused, match=r"which is not served|not a pair"):
        check(tmp_path)


@pytest.mark.parametrize("content", [b"", b"weights" * 100])
def test_a_file_that_holds_no_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    write_peft(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(AdapterRefused, match=f"{WEIGHTS} cannot be read"):
        check(tmp_path)


def test_an_adapter_of_nothing_is_refused(tmp_path: Path) -> None:
    write_peft(tmp_path)
    save_file({}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterRefused, match="holds no weights"):
        check(tmp_path)


@pytest.fixture(scope="module")
def practice() -> Shapes:
    from transformers import AutoConfig

    shapes = base_shapes(AutoConfig.from_pretrained(MODEL_DIR))
    assert shapes is not None
    return shapes


def written_by_peft(path: Path, target: str = "q_proj", **options: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=[target], **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL_DIR), config)
    model.save_pretrained(str(path))


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"layers.0.self_attn.q_proj": 2}}]
)
def test_adapters_that_peft_writes_are_accepted(
    tmp_path: Path, practice: Shapes, options: dict[str, Any]
) -> None:
    written_by_peft(tmp_path, **options)
    assert check(tmp_path, practice) == 4
    fields = json.loads((tmp_path / CONFIG).read_text())
    assert {"use_dora", "alora_invocation_tokens", "kasa_config", "target_parameters"} <= set(
        fields
    )


BY_PEFT: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "has DoRA"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "has whole modules"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "has aLoRA"),
    "tokens": ({"trainable_token_indices": [1]}, "has trained tokens"),
    "biases": ({"bias": "lora_only"}, "has trained biases"),
    "LoRA's bias": ({"lora_bias": True}, "a bias of its own"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "the head's own weights": ({"target": "lm_head"}, "save_embedding_layers=False"),
}


# PEFT advises against some of them.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", BY_PEFT)
def test_unsupported_adapters_of_peft_are_refused_by_name(
    tmp_path: Path, practice: Shapes, kind: str
) -> None:
    options, message = BY_PEFT[kind]
    written_by_peft(tmp_path, **options)
    with pytest.raises(AdapterRefused, match=message):
        check(tmp_path, practice)


def test_an_unknown_architecture_has_no_shapes() -> None:
    from transformers import PretrainedConfig

    assert base_shapes(PretrainedConfig(architectures=["NobodysModel"])) is None
    assert base_shapes(PretrainedConfig()) is None
