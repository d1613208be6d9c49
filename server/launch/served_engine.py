"""The engine that vLLM started, and what the guard derives from it: the critic, which adapters fit,
what it may do. Owns this derivation. Does not build the guard (plugin.py).
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any

from vllm.lora.request import LoRARequest

from guard.adapter_folder import AdapterFolder
from guard.adapters import AdapterLimits, Adapters
from guard.base_shapes import base_shapes
from guard.calibration import UNSCALED, Scales
from guard.criteria import Criterion
from guard.critic import Critic
from guard.options import GuardOptions
from guard.prompts import CritiqueStyle
from guard.recorder import Provenance
from guard.revise import RevisionOptions
from guard.store.leases import this_process
from guard.store.replicas import Replica
from guard.template import ChatFormat
from guard.vllm.session import ASYNC_SCHEDULER, SCHEDULER
from guard.windows import DEFAULT_VERDICT_TOKENS, Windows
from server.launch.preflight import check_answer_format
from server.launch.revision import model_revision
from server.launch.state import GuardState
from server.routes.model_access import ModelAccess
from server.settings import Settings

_REFINE_TIMEOUT_S = 600.0


class ServedEngine:
    """The model behind the engine client, and what the guard derives from it.

    names: the served model names; the first is recorded. revision: the model revision.
    """

    def __init__(self, engine: Any, names: list[str], chat_template: str | None) -> None:
        self._engine = engine
        self._tokenizer = engine.renderer.get_tokenizer()
        self._config = engine.model_config
        # Not checked before vLLM started if it was downloaded by name.
        check_answer_format(getattr(self._config.hf_config, "model_type", None))
        self.revision = model_revision(engine.model_config)
        self.names = names
        self._chat_template = chat_template
        self.chat_format = ChatFormat(self._tokenizer, chat_template)

    def critic(
        self,
        timeout_s: float,
        adapters: Adapters,
        scales_of: Callable[[LoRARequest | None], Scales],
        criteria: Sequence[Criterion] = (),
    ) -> Critic:
        return Critic(
            self._engine,
            self._tokenizer,
            self.chat_format,
            max_model_len=self._config.max_model_len,
            timeout_s=timeout_s,
            criteria=criteria,
            style_of=adapters.critique_style,
            scales_of=scales_of,
        )

    def adapter_limits(self, folder: AdapterFolder, base_critique: CritiqueStyle) -> AdapterLimits:
        lora = self._engine.vllm_config.lora_config
        rank, slots = (lora.max_lora_rank, lora.max_loras) if lora else (0, 0)
        shapes = cache(lambda: base_shapes(self._config.hf_config))
        return AdapterLimits(folder, self.revision, rank, slots, base_critique, shapes)

    def reporting(self, guard: GuardState) -> Callable[[], Replica]:
        """Returns what says which versions this process serves now."""
        name, started_at = this_process(), datetime.now(UTC)
        return lambda: Replica(
            name=name,
            started_at=started_at,
            seen_at=datetime.now(UTC),
            ready=guard.ready,
            adapter=guard.adapters.active,
            model=self.names[0],
            model_revision=self.revision,
            policy_hash=guard.policies.current.default.hash,
            version=version("setback"),
        )

    def provenance(self, salt: str) -> Provenance:
        return Provenance(self.names[0], self.revision, salt)

    def model_access(self, adapters: Adapters, token: str, settings: Settings) -> ModelAccess:
        info = {
            "model": self.names[0],
            "base": self._config.model,
            "model_revision": self.revision,
            "max_model_len": self._config.max_model_len,
            "max_lora_rank": adapters.max_rank,
            "reminder": settings.reminder,
            "world": settings.world,
            "chat_template": self._chat_template,
        }
        # Uncalibrated: evaluation and fitting need the model's own scores.
        critic = self.critic(_REFINE_TIMEOUT_S, adapters, lambda _: UNSCALED)
        return ModelAccess(self._engine, critic, self.chat_format, adapters, token, info)


def guard_options(settings: Settings, engine_client: Any) -> GuardOptions:
    """Returns how the guard behaves, by the settings and by what the engine can do."""
    scheduler = engine_client.vllm_config.scheduler_config.scheduler_cls
    return GuardOptions(
        in_session=scheduler in (SCHEDULER, ASYNC_SCHEDULER),
        parses_reasoning=bool(engine_client.vllm_config.structured_outputs_config.reasoning_parser),
        reminder=settings.reminder,
        fail_open=settings.on_failure == "open",
        block_input=settings.block_input,
        stream=settings.stream_mode,
        windows=Windows(
            settings.stream_window,
            settings.stream_window_growth,
            settings.verdict_tokens or DEFAULT_VERDICT_TOKENS,
        ),
        revisions=RevisionOptions(
            settings.revision_max_tokens,
            settings.revision_timeout_s,
            settings.revisions_at_once,
            settings.revised_finish_reason,
        ),
    )
