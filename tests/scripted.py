"""A guarded engine over the scripted one, with the practice model's real tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.call import GuardCall, current_call
from guard.critic import Critic
from guard.engine import GuardedEngine, GuardOptions
from guard.errors import StoreUnavailable
from guard.policy import Action, Policy, load_policy
from guard.recorder import Provenance, Recorder
from guard.scripted import Script, ScriptedEngine
from guard.store.flags import Flag
from guard.template import ChatFormat
from refine.practice.recipe import MODEL_DIR


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The practice model's tokenizer."""
    import os

    return AutoTokenizer.from_pretrained(os.environ.get("TT", MODEL_DIR))


@dataclass
class Observed:
    """An observer that remembers."""

    verdicts: list[tuple[str, str]] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    critiques: int = 0
    overheads: int = 0
    flags: int = 0

    def verdict(self, category: str, adapter: str) -> None:
        self.verdicts.append((category, adapter))

    def action(self, action: Action, _adapter: str) -> None:
        self.actions.append(action)

    def critique(self, _seconds: float) -> None:
        self.critiques += 1

    def overhead(self, _seconds: float) -> None:
        self.overheads += 1

    def flag_written(self) -> None:
        self.flags += 1

    def failed(self, code: str) -> None:
        self.failures.append(code)


@dataclass
class MemoryStore:
    """A flag store in memory, which can be told to fail."""

    flags: list[Flag] = field(default_factory=list)
    broken: bool = False

    async def add(self, flag: Flag) -> int:
        if self.broken:
            raise StoreUnavailable("scripted")
        self.flags.append(flag)
        return len(self.flags)


@dataclass
class Bench:
    """A guarded engine, what it stands on, and what came of it."""

    engine: ScriptedEngine
    guarded: GuardedEngine
    store: MemoryStore
    observed: Observed
    chat_format: ChatFormat
    call: GuardCall = field(default_factory=lambda: GuardCall(route="/v1/chat/completions"))

    async def ask(
        self,
        request: str = "How do I water a fern?",
        kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY,
        **params: Any,
    ) -> list[RequestOutput]:
        """All outputs of one chat request, as vLLM's API layer would ask for it."""
        prompt_ids = self.chat_format.conversation([{"role": "user", "content": request}])
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        return await self.generate(prompt, kind, **params)

    async def generate(
        self, prompt: Any, kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY, **params: Any
    ) -> list[RequestOutput]:
        """All outputs for one engine prompt."""
        token = current_call.set(self.call)
        try:
            sampling = SamplingParams(output_kind=kind, **params)
            return [out async for out in self.guarded.generate(prompt, sampling, "req-1")]
        finally:
            current_call.reset(token)


@pytest.fixture
def make_bench(tokenizer: Any, tmp_path: Path) -> Callable[..., Bench]:
    """Builds a Bench: make_bench(script, policy="toml text", reminder=..., fail_open=...)."""

    def make(
        script: Script | None = None,
        *,
        policy: str | None = None,
        reminder: bool = False,
        fail_open: bool = False,
        timeout_s: float = 5.0,
        max_model_len: int = 1024,
    ) -> Bench:
        engine = ScriptedEngine(tokenizer, script or Script(), max_model_len)
        chat_format = ChatFormat(tokenizer)
        critic = Critic(
            engine, tokenizer, chat_format, max_model_len=max_model_len, timeout_s=timeout_s
        )
        store, observed = MemoryStore(), Observed()
        rules = _policy(policy, tmp_path)
        guarded = GuardedEngine(
            engine,
            critic=critic,
            chat_format=chat_format,
            policy=rules,
            recorder=Recorder(store, Provenance("practice", "rev-1", rules.hash, "s" * 16)),
            observer=observed,
            options=GuardOptions(reminder=reminder, fail_open=fail_open),
        )
        return Bench(engine, guarded, store, observed, chat_format)

    return make


def _policy(text: str | None, folder: Path) -> Policy:
    if text is None:
        return load_policy()
    path = folder / "policy.toml"
    path.write_text(text)
    return load_policy(path)
