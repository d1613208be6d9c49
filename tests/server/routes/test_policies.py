"""/v1/guard/policy and /v1/guard/policies over a real database, and the file that changes them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from guard.policies import Policies
from guard.policy_file import load_policies, load_policy
from server.launch.policy_reload import PolicySource
from tests.scripted import Bench
from tests.server.face import BASE_URL, Face

KIDS = """
[policies.kids]
refusal = "Ask a grown-up."
models = ["tutor"]
"""


async def test_the_policies_are_shown_with_their_hashes(face: Face, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(KIDS)
    policies = face.app.state.setback.policies.current = load_policies(file)
    async with face.client(f"{BASE_URL}/v1/guard") as client:
        shown = (await client.get("/policy")).json()
    assert (shown["hash"], shown["refusal"]) == (load_policy().hash, load_policy().refusal)
    assert shown["rules"]["hate"] == {"threshold": 0.5, "action": "revise"}
    assert [one["hash"] for one in shown["named"]] == [policies.named["kids"].hash]
    assert shown["models"] == {"tutor": "kids"}


async def test_a_changed_file_comes_into_force_and_is_kept(
    face: Face,
    make_bench: Callable[..., Bench],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "own.toml"
    file.write_text(KIDS)
    store, critic = face.app.state.setback.policy_store, make_bench().critic
    source = PolicySource(file, store)
    first = await source.load()
    policies = Policies(first)
    await source.refresh(policies, critic)
    assert policies.current is first
    file.write_text(KIDS.replace("grown-up", "teacher"))
    await source.refresh(policies, critic)
    assert policies.current.named["kids"].refusal == "Ask a teacher."
    for wrong in ("refusal = 3", f'[[criteria]]\nname = "a"\nquestion = "{"word " * 900}?"'):
        second = policies.current
        file.write_text(wrong)
        await source.refresh(policies, critic)
        await source.refresh(policies, critic)
        assert policies.current is second
    file.unlink()
    await source.refresh(policies, critic)
    errors = (one.getMessage() for one in caplog.records if one.levelname == "ERROR")
    # Another test's server may have added a handler to vLLM's logger.
    refused = list(dict.fromkeys(errors))
    assert len(refused) == 3
    assert ["line 1: refusal" in refused[0], "The critique needs" in refused[1]] == [True, True]
    assert "cannot be read" in refused[2]
    async with face.client(f"{BASE_URL}/v1/guard") as client:
        versions = (await client.get("/policies")).json()["data"]
    kids = [one["content"]["refusal"] for one in versions if one["name"] == "kids"]
    assert kids == ["Ask a teacher.", "Ask a grown-up."]
