"""An engine that follows a script, for tests of what wraps the engine client. Owns the part of
vLLM's EngineClient that the guard uses: drafts in scripted pieces, label reads with scripted
probabilities, delays and failures. Runs no model. Of the sampling parameters it uses only the
output kind, the token limit and the log-probabilities.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.verdict import CATEGORIES, CATEGORY_LETTERS

_PARTIAL = "\N{REPLACEMENT CHARACTER}"
_LETTER = {category: letter for letter, category in CATEGORY_LETTERS.items()}


@dataclass
class Gate:
    """Blocks all who wait until `opened` is set. arrived: set when the first one waits."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Waits until the gate is opened."""
        self.arrived.set()
        await self.opened.wait()


@dataclass
class Script:
    """What the engine does.

    answers: returns the draft of each choice for a prompt's text.
    harm: returns the probability of "yes" for a critique's whole prompt text.
    category: the category that the category read names, with certainty.
    piece_tokens: tokens in each streamed piece.
    critique_delay_s: seconds each label read takes. gate: blocks label reads.
    draft_gate: blocks drafts before their last piece. aborts: drafts end as in a stopped engine.
    fail_draft, fail_critique, fail_lora: raised instead of an output, or by add_lora.
    """

    answers: Callable[[str], Sequence[str]] = lambda prompt: ("All is well.",)
    harm: Callable[[str], float] = lambda prompt: 0.0
    category: str = "violence"
    piece_tokens: int = 2
    critique_delay_s: float = 0.0
    gate: Gate | None = None
    draft_gate: Gate | None = None
    aborts: bool = False
    fail_draft: Exception | None = None
    fail_critique: Exception | None = None
    fail_lora: Exception | None = None


class EngineCall(NamedTuple):
    """One request to the engine: a draft or a label read."""

    request_id: str
    lora_request: LoRARequest | None
    priority: int
    params: SamplingParams


@dataclass
class ScriptedEngine:
    """Replaces vLLM's engine client and logs its requests.

    log: ("draft" | "read", prompt text), and ("closed", request id) when a draft was cancelled.
    requests: every draft and label read.
    loras: the loaded adapters by id. A request with any other adapter is served, but vLLM would
    load that one from its files, so it counts in `reloads`.
    """

    tokenizer: Any
    script: Script = field(default_factory=Script)
    max_model_len: int = 1024
    log: list[tuple[str, str]] = field(default_factory=list)
    requests: list[EngineCall] = field(default_factory=list)
    loras: dict[int, LoRARequest] = field(default_factory=dict)
    reloads: int = 0

    def __post_init__(self) -> None:
        self.renderer = SimpleNamespace(get_tokenizer=lambda: self.tokenizer)
        self.model_config = SimpleNamespace(
            max_model_len=self.max_model_len, try_get_generation_config=dict
        )

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Admits everything."""

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """As EngineClient.add_lora."""
        # A real engine answers over a socket.
        await asyncio.sleep(0)
        if self.script.fail_lora is not None:
            raise self.script.fail_lora
        self.loras[lora_request.lora_int_id] = lora_request
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        """As EngineClient.remove_lora."""
        await asyncio.sleep(0)
        return self.loras.pop(lora_id, None) is not None

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
        **_options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """As EngineClient.generate."""
        self.requests.append(EngineCall(request_id, lora_request, priority, sampling_params))
        self.reloads += lora_request is not None and lora_request.lora_int_id not in self.loras
        token_ids = prompt["prompt_token_ids"]
        if len(token_ids) >= self.max_model_len:
            raise ValueError(f"{len(token_ids)} tokens exceed the scripted context")
        text = self.tokenizer.decode(token_ids)
        if sampling_params.logprob_token_ids:
            self.log.append(("read", text))
            yield await self._read(text, token_ids, sampling_params, request_id)
            return
        self.log.append(("draft", text))
        try:
            for output in self._drafts(text, token_ids, sampling_params, request_id):
                # A real engine yields to the event loop between pieces.
                await asyncio.sleep(0)
                if output.finished and self.script.draft_gate is not None:
                    await self.script.draft_gate.wait()
                yield output
        except (GeneratorExit, asyncio.CancelledError):
            self.log.append(("closed", request_id))
            raise

    async def _read(
        self, text: str, token_ids: list[int], params: SamplingParams, request_id: str
    ) -> RequestOutput:
        await asyncio.sleep(self.script.critique_delay_s)
        if self.script.gate is not None:
            await self.script.gate.wait()
        if self.script.fail_critique is not None:
            raise self.script.fail_critique
        assert params.logprob_token_ids is not None
        chosen = self._probabilities(text, params.logprob_token_ids)
        logprobs = {
            token: Logprob(math.log(p) if p > 0 else -math.inf) for token, p in chosen.items()
        }
        best = max(chosen, key=chosen.__getitem__)
        output = CompletionOutput(0, "", [best], None, [logprobs], finish_reason="length")
        return RequestOutput(request_id, None, token_ids, None, [output], finished=True)

    def _probabilities(self, text: str, token_ids: list[int]) -> dict[int, float]:
        words = {token: self.tokenizer.decode([token]).strip() for token in token_ids}
        if len(set(words.values())) == len(CATEGORIES):
            letter = _LETTER[self.script.category]
            return {token: float(word == letter) for token, word in words.items()}
        harm = self.script.harm(text)
        odds = {"yes": harm, "no": 1 - harm}
        # The whole probability goes to the first spelling of each label.
        return {token: odds.pop(word.lower(), 0.0) for token, word in words.items()}

    def _drafts(
        self, text: str, prompt_ids: list[int], params: SamplingParams, request_id: str
    ) -> Sequence[RequestOutput]:
        if self.script.fail_draft is not None:
            raise self.script.fail_draft
        choices = [
            self._pieces(index, answer, params)
            for index, answer in enumerate(self.script.answers(text))
        ]
        if params.output_kind is RequestOutputKind.FINAL_ONLY:
            steps = [[pieces[-1] for pieces in choices]]
        else:
            longest = max(map(len, choices))
            steps = [[p[i] for p in choices if i < len(p)] for i in range(longest)]
        return [
            RequestOutput(request_id, None, prompt_ids, None, outputs, finished=step is steps[-1])
            for step in steps
            for outputs in [step]
        ]

    def _pieces(self, index: int, answer: str, params: SamplingParams) -> list[CompletionOutput]:
        """Returns the choice's outputs as deltas or cumulative, as output_kind asks."""
        ids = [*self.tokenizer.encode(answer), self.tokenizer.eos_token_id][: params.max_tokens]
        reason = "stop" if ids[-1] == self.tokenizer.eos_token_id else "length"
        if self.script.aborts:
            reason = "abort"
        deltas = params.output_kind is RequestOutputKind.DELTA
        size = max(self.script.piece_tokens, params.stream_interval or 1)
        pieces, sent = [], ""
        for start in range(0, len(ids), size):
            end = start + size
            shown = ids[start if deltas else 0 : end]
            text = self._whole_characters(ids, end)
            piece_text, sent = text[len(sent) :] if deltas else text, text
            pieces.append(
                CompletionOutput(
                    index,
                    piece_text,
                    shown,
                    None,
                    [{t: Logprob(-0.5, 1, self.tokenizer.decode([t]))} for t in shown]
                    if params.logprobs
                    else None,
                    finish_reason=reason if end >= len(ids) else None,
                )
            )
        return pieces

    def _whole_characters(self, ids: list[int], end: int) -> str:
        """Returns the text of the first `end` tokens; as in vLLM, without a last character of which
        tokens are missing."""
        text: str = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text if end >= len(ids) else text.removesuffix(_PARTIAL)
