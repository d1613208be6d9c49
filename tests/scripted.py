"""A guarded engine over the scripted one, with the practice model's real tokenizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.adapter_folder import AdapterFolder
from guard.adapters import AdapterLimits, Adapters
from guard.call import GuardCall, StreamMode, current_call
from guard.criteria import Place
from guard.critic import Critic
from guard.engine import GuardedEngine
from guard.errors import StoreUnavailable
from guard.observer import RevisionOutcome
from guard.options import GuardOptions
from guard.policies import Policies, PolicySet
from guard.policy import Action, Policy
from guard.policy_file import load_policy
from guard.recorder import Provenance, Recorder
from guard.revise import RevisionOptions
from guard.rollouts import Rollouts
from guard.scripted import Gate, Script, ScriptedEngine
from guard.store.flags import Flag
from guard.template import ChatFormat
from guard.verdict import TokensRead
from guard.windows import Windows
from refine.practice.recipe import MODEL_DIR
from tests.adapters import REVISION, MemoryRegistry, MemoryRollouts

BLOCK = '[default]\nthreshold = 0.5\naction = "block"\n'
"""A policy that revises nothing."""
REVISIONS = RevisionOptions(
    max_tokens=256, timeout_s=5.0, at_once=4, finish_reason="content_filter"
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The practice model's tokenizer."""
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@dataclass
class Observed:
    """An observer that records events."""

    verdicts: list[tuple[str, str]] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    active: list[tuple[int | None, bool]] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    critiques: int = 0
    overheads: int = 0
    flags: int = 0
    flag_places: list[Place] = field(default_factory=list)
    blocked_inputs: int = 0
    revisions: list[RevisionOutcome] = field(default_factory=list)
    tokens: TokensRead = TokensRead()

    def verdict(self, category: str, *, adapter: str, policy: str) -> None:
        self.verdicts.append((category, adapter))
        self.policies.append(policy)

    def action(self, action: Action, *, adapter: str, policy: str) -> None:
        self.actions.append(action)

    def critique_tokens(self, tokens: TokensRead) -> None:
        self.tokens += tokens

    def input_blocked(self, *, adapter: str, policy: str) -> None:
        self.blocked_inputs += 1

    def revision(self, outcome: RevisionOutcome, _seconds: float) -> None:
        self.revisions.append(outcome)

    def critique(self, _seconds: float) -> None:
        self.critiques += 1

    def overhead(self, _seconds: float) -> None:
        self.overheads += 1

    def flag_written(self, place: Place, _seconds: float) -> None:
        self.flags += 1
        self.flag_places.append(place)

    def failed(self, code: str) -> None:
        self.failures.append(code)

    def adapter_active(self, version: int | None, *, swapped: bool) -> None:
        self.active.append((version, swapped))

    def adapter_refused(self, version: int) -> None:
        self.refused.append(version)


@dataclass
class MemoryStore:
    """A flag store in memory, which can fail or wait."""

    flags: list[Flag] = field(default_factory=list)
    broken: bool = False
    gate: Gate | None = None

    async def add(self, flag: Flag) -> int:
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise StoreUnavailable("scripted")
        self.flags.append(flag)
        return len(self.flags)


@dataclass
class Bench:
    """A guarded engine with its parts and results."""

    engine: ScriptedEngine
    adapters: Adapters
    registry: MemoryRegistry
    rollouts: Rollouts
    source: MemoryRollouts
    guarded: GuardedEngine
    critic: Critic
    policy: Policy
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
        """Returns all outputs of one chat request, as vLLM's API layer requests it."""
        prompt_ids = self.chat_format.conversation([{"role": "user", "content": request}])
        prompt = {"type": "token", "prompt_token_ids": prompt_ids}
        return await self.generate(prompt, kind, **params)

    async def ask_in_call(self, call: GuardCall | None) -> list[RequestOutput]:
        """Sends one chat request as part of an existing call."""
        assert call is not None
        self.call = call
        return await self.ask()

    async def generate(
        self,
        prompt: Any,
        kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY,
        *,
        options: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> list[RequestOutput]:
        """Returns all outputs for one engine prompt; `options` are the engine's, `params`
        sampling's."""
        token = current_call.set(self.call)
        try:
            sampling = SamplingParams(output_kind=kind, **{"max_tokens": None, **params})
            outputs = self.guarded.generate(prompt, sampling, "req-1", **(options or {}))
            return [out async for out in outputs]
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
        block_input: bool = False,
        timeout_s: float = 5.0,
        max_model_len: int = 1024,
        stream: StreamMode = StreamMode.BUFFER,
        windows: tuple[int, float, int] = (4, 1.0, 64),
        revisions: RevisionOptions = REVISIONS,
        adapters_url: str | None = None,
    ) -> Bench:
        rules = _policy(policy, tmp_path)
        engine = ScriptedEngine(tokenizer, script or Script(), max_model_len)
        chat_format = ChatFormat(tokenizer)
        store, observed, registry = MemoryStore(), Observed(), MemoryRegistry()
        folder = AdapterFolder(tmp_path / "adapters", adapters_url)
        limits = AdapterLimits(folder, REVISION, max_rank=16, slots=3)
        adapters = Adapters(engine, registry, limits, observed)
        source = MemoryRollouts()
        rollouts = Rollouts(adapters, source)
        critic = Critic(
            engine,
            tokenizer,
            chat_format,
            max_model_len=max_model_len,
            timeout_s=timeout_s,
            criteria=rules.criteria,
            style_of=adapters.critique_style,
        )
        guarded = GuardedEngine(
            engine,
            rollouts=rollouts,
            critic=critic,
            chat_format=chat_format,
            policies=Policies(PolicySet(rules)),
            recorder=Recorder(store, Provenance("practice", REVISION, "s" * 16)),
            observer=observed,
            options=GuardOptions(
                reminder,
                fail_open,
                block_input,
                stream,
                Windows(*windows),
                revisions,
                in_session=False,
                parses_reasoning=False,
            ),
        )
        return Bench(
            engine,
            adapters,
            registry,
            rollouts,
            source,
            guarded,
            critic,
            rules,
            store,
            observed,
            chat_format,
        )

    return make


def _policy(text: str | None, folder: Path) -> Policy:
    if text is None:
        return load_policy()
    path = folder / "policy.toml"
    path.write_text(text)
    return load_policy(path)
