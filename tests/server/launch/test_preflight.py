"""Problems that would end vLLM's start after minutes are reported at once, with the fix."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guard.errors import AdapterRefused
from refine.practice.recipe import MODEL_DIR
from server.launch import preflight
from server.launch.preflight import CacheRequest, ModelUnusable, check_cache, check_chat_template
from tests.adapters import write_peft

_GIB = 1024**3
CONFIG = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
PER_TOKEN = 2 * 30 * 3 * 64 * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of one GiB, as far as file sizes tell."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(_GIB)
    return tmp_path


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine of 16 GiB, of which 8 are free."""
    machine = SimpleNamespace(total=16 * _GIB, available=8 * _GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: machine)
    return machine


def refusal(folder: Path, **request: Any) -> str:
    with pytest.raises(ModelUnusable) as raised:
        check_cache(folder, CacheRequest(**request))
    return str(raised.value)


def test_what_fits_passes(folder: Path) -> None:
    check_cache(folder, CacheRequest(2 * _GIB))
    check_cache(folder, CacheRequest(None, share=0.4))


def test_vllms_own_cache_size_that_does_not_fit_is_reported(folder: Path) -> None:
    message = refusal(folder, cache_bytes=None)
    assert "14.7 GiB" in message
    assert "8.0 GiB are free; pass --kv-cache-memory-bytes 3584M" in message
    check_cache(folder, CacheRequest(3584 * 1024**2))


def test_a_cache_beside_its_weights_must_fit(folder: Path) -> None:
    check_cache(folder, CacheRequest(7 * _GIB))
    assert "--kv-cache-memory-bytes 3584M" in refusal(folder, cache_bytes=7 * _GIB + 1)
    assert "weights of 2.0 GiB" in refusal(folder, cache_bytes=7 * _GIB, bytes_per_value=4)


def test_weights_that_do_not_fit_are_reported(folder: Path, memory: SimpleNamespace) -> None:
    memory.available = _GIB // 2
    assert "serve a smaller model" in refusal(folder, cache_bytes=1)


def test_a_cache_must_hold_one_request_of_full_length(folder: Path) -> None:
    enough = 8192 * PER_TOKEN
    check_cache(folder, CacheRequest(enough))
    assert "pass --max-model-len 8191 or less" in refusal(folder, cache_bytes=enough - 1)
    check_cache(folder, CacheRequest(enough // 2, max_model_len=4096))


@pytest.mark.parametrize("unusual", [{"sliding_window": 4096}, {"layer_types": []}, {}])
def test_an_unusual_attention_is_left_to_vllm(folder: Path, unusual: dict[str, Any]) -> None:
    config = CONFIG | unusual | ({"layer_types": ["linear"]} if unusual else {})
    if not unusual:
        del config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    check_cache(folder, CacheRequest(1024))


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_chat_template_may_be_a_file(folder: Path, name: str) -> None:
    with pytest.raises(ModelUnusable, match="--chat-template"):
        check_chat_template(folder)
    (folder / name).write_text("{{ messages }}")
    check_chat_template(folder)


def test_a_chat_template_may_be_in_the_tokenizers_configuration(folder: Path) -> None:
    configuration = folder / "tokenizer_config.json"
    configuration.write_text('{"chat_template": null}')
    with pytest.raises(ModelUnusable, match="--chat-template"):
        check_chat_template(folder)
    configuration.write_text('{"chat_template": "{{ messages }}"}')
    check_chat_template(folder)


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"no config\.json"):
        preflight.check_folder(tmp_path)


def test_a_model_that_answers_in_harmonys_channels_is_refused_by_name(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "gpt_oss"}))
    with pytest.raises(ModelUnusable, match="gpt-oss answers in Harmony's channels"):
        preflight.check_folder(folder)


def test_an_adapter_on_the_command_line_is_checked(tmp_path: Path) -> None:
    """Registered adapters are verified by hash; this one may contain anything."""
    write_peft(tmp_path, use_dora=True)
    module = SimpleNamespace(name="mine", path=str(tmp_path))
    with pytest.raises(AdapterRefused, match=r"Adapter mine in .* has DoRA"):
        preflight.check_lora_modules([module], Path("a-hubs/name"))


def test_it_must_fit_the_base_where_that_is_here(tmp_path: Path) -> None:
    write_peft(tmp_path, module="model.layers.99.self_attn.q_proj")
    module = SimpleNamespace(name="mine", path=str(tmp_path))
    preflight.check_lora_modules([module], Path("a-hubs/name"))
    with pytest.raises(AdapterRefused, match=r"layers.99.* which the served model does not have"):
        preflight.check_lora_modules([module], MODEL_DIR)


def test_an_adapter_that_a_hub_has_is_left_to_vllm() -> None:
    module = SimpleNamespace(name="mine", path="a-hubs/adapter")
    preflight.check_lora_modules([module], Path("a-hubs/name"))
