"""Adapters as users make them, in a real server: a loaded adapter acts as PEFT computes it, and a
refused one never becomes active."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from guard.adapter_config import WEIGHTS
from guard.adapter_files import adapter_path
from tests.adapters import activate, publish
from tests.e2e.refine_access import model_revision
from tests.families.conftest import Served
from tests.families.made import QWEN
from tests.families.swaps import wait_for, wait_for_log

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.parametrize("served", [QWEN.name], indirect=True),
]

PROMPT = [8, 42, 1000, 77, 20000, 5]
"""Any tokens: not a chat prompt, so that the server puts nothing into it."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "rank 64": {"r": 64, "target_modules": LINEAR},
    "rsLoRA": {"r": 16, "use_rslora": True, "target_modules": LINEAR},
    "patterns": {
        "r": 4,
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 32, "layers.1.mlp.down_proj": 8},
        "alpha_pattern": {"v_proj": 24},
    },
    "rsLoRA with patterns": {
        "r": 4,
        "use_rslora": True,
        "target_modules": ["q_proj", "o_proj"],
        "rank_pattern": {"o_proj": 16},
    },
    "the head": {"r": 8, "target_modules": ["lm_head"]},
    "the embeddings": {"r": 8, "target_modules": ["embed_tokens"]},
    "one layer": {"r": 8, "target_modules": LINEAR, "layers_to_transform": [1]},
}


def adapted(served: Served, path: Path, **options: Any) -> dict[int, float]:
    """Saves an adapter with random weights, and returns the most likely next tokens by PEFT."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(served.model, dtype=torch.float32)

    torch.manual_seed(7)
    config = LoraConfig(task_type="CAUSAL_LM", lora_alpha=16, init_lora_weights=False, **options)
    model = get_peft_model(base(), config)
    for name, weights in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(str(path), save_embedding_layers=False)
    with torch.no_grad():
        logits = PeftModel.from_pretrained(base(), str(path))(torch.tensor([PROMPT])).logits
    logprobs = logits[0, -1].log_softmax(-1)
    top = logprobs.topk(5)
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def served_logprobs(served: Served) -> dict[int, float]:
    body = {"model": QWEN.name, "prompt": PROMPT, "max_tokens": 1, "logprobs": 5}
    body |= {"temperature": 0, "return_tokens_as_token_ids": True}
    with served.server.http() as http:
        answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    (top,) = answer.json()["choices"][0]["logprobs"]["top_logprobs"]
    return {int(token.removeprefix("token_id:")): value for token, value in top.items()}


# PEFT warns of adapters of tied weights.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_it_acts_as_peft_computes_it(served: Served, tmp_path: Path, kind: str) -> None:
    plain = served_logprobs(served)
    expected = adapted(served, tmp_path / "adapter", **KINDS[kind])
    url = served.server.database
    revision = asyncio.run(model_revision(served.server))
    version = asyncio.run(publish(url, served.adapters, tmp_path / "adapter", revision))
    asyncio.run(activate(url, version))
    wait_for(served, f"setback-{version}")
    logprobs = served_logprobs(served)
    asyncio.run(activate(url, None))
    wait_for(served, "base")
    assert logprobs == pytest.approx(expected, abs=2e-2)
    assert set(logprobs) != set(plain)


def no_such_layer(path: Path) -> None:
    """An adapter of a deeper model, registered for this one."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path / WEIGHTS)
    renamed = {name.replace("layers.1.", "layers.9."): tensor for name, tensor in tensors.items()}
    save_file(renamed, path / WEIGHTS)


def test_adapters_that_do_not_fit_the_base_are_never_active(served: Served, tmp_path: Path) -> None:
    adapted(served, tmp_path / "adapter", r=4, target_modules=["q_proj"])
    no_such_layer(tmp_path / "adapter")
    url = served.server.database
    version = asyncio.run(
        publish(
            url, served.adapters, tmp_path / "adapter", asyncio.run(model_revision(served.server))
        )
    )
    asyncio.run(activate(url, version))
    message = f"Adapter {version} in {adapter_path(served.adapters, version)} adapts"
    wait_for_log(served, message)
    wait_for(served, "base")
    asyncio.run(activate(url, None))
