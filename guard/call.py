"""One guarded request, from the HTTP layer to the engine and back. Owns what the caller asked of
the guard and what the guard found. Decides nothing.
"""

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from guard.errors import GuardError
from guard.policy import Action, Decision, Policy
from guard.tool_calls import CallReader, Piece
from guard.verdict import Verdict

Message = dict[str, str]


class StreamMode(StrEnum):
    """When a stream's text is released, from the most lenient to the strictest.

    ASYNC: at once; verdicts follow and can end the stream, so flagged text may have been seen.
    WINDOW: once a verdict covers it. BUFFER: once the whole answer has a verdict.
    """

    ASYNC = "async"
    WINDOW = "window"
    BUFFER = "buffer"

    def or_stricter(self, other: "StreamMode | None") -> "StreamMode":
        """Returns the stricter of the two modes."""
        modes = tuple(StreamMode)
        return max(self, other or self, key=modes.index)


RevisedFinishReason = Literal["stop", "content_filter"]
FinishReason = RevisedFinishReason | Literal["length"]


@dataclass(frozen=True)
class Replacement:
    """The text sent instead of a withheld answer: a refusal, or the model's own revision.

    tokens: how many were generated for it. finish_reason: what the choice ends with.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: int = 0
    finish_reason: FinishReason = "content_filter"


@dataclass(frozen=True)
class EmptyReasoning:
    """Empty reasoning that must precede a replacement when the server parses reasoning: otherwise
    the parser would take the replacement for reasoning.

    text, token_ids: the whole of it. end: the text of its last token, the end mark.
    """

    text: str
    token_ids: tuple[int, ...]
    end: str

    def prepend_to(self, replacement: Replacement, shown_ids: Sequence[int]) -> Replacement:
        """Returns the replacement as an answer, after the tokens that the client saw already."""
        if self.token_ids[-1] in shown_ids:
            return replacement
        text, token_ids = (
            (self.end, self.token_ids[-1:]) if shown_ids else (self.text, self.token_ids)
        )
        return replace(
            replacement, text=text + replacement.text, token_ids=token_ids + replacement.token_ids
        )


@dataclass(frozen=True)
class Ruling:
    """The verdict and the decision on one text: an answer or the input.

    verdict: None when the critique failed and the guard fails open.
    checked: how many characters of the text, from its start, the verdict covers.
    revision: what is sent instead, once the action "revise" succeeded.
    """

    verdict: Verdict | None
    decision: Decision
    checked: int
    revision: Replacement | None = None

    @property
    def withheld(self) -> bool:
        """Whether the text is not released."""
        return self.decision.action in (Action.REVISE, Action.BLOCK)

    @property
    def filtered(self) -> bool:
        """Whether the text is not released, and what is sent instead is marked as filtered."""
        return self.withheld and (
            self.revision is None or self.revision.finish_reason == "content_filter"
        )

    @property
    def harm(self) -> float:
        """The verdict's harm, 0 without a verdict."""
        return self.verdict.harm if self.verdict else 0.0

    def blocked(self) -> "Ruling":
        """Returns the same ruling with the action "block"."""
        return replace(self, decision=replace(self.decision, action=Action.BLOCK))

    def or_stricter(self, other: "Ruling") -> "Ruling":
        """Returns this ruling unless the other flags more, or as much with more harm."""
        # Compare flags first: a category's threshold may be lower than another's.
        stricter = max(self, other, key=lambda ruling: (ruling.decision.flagged, ruling.harm))
        if not (self.verdict and other.verdict and stricter.verdict):
            return stricter
        # Not all criteria are read each time.
        verdict = stricter.verdict.with_criteria(self.verdict.criteria)
        return replace(stricter, verdict=verdict.with_criteria(other.verdict.criteria))


@dataclass(frozen=True)
class Answered:
    """An answer whose ruling is final.

    pieces: of the draft. seconds: from the request to the ruling. guard_s: from the draft's last
    token to the ruling, None for a stream that was withheld before its end.
    """

    ruling: Ruling
    pieces: Sequence[Piece]
    seconds: float
    guard_s: float | None

    @property
    def token_ids(self) -> list[int]:
        """The draft's tokens."""
        return [token for _, token_ids in self.pieces for token in token_ids]


@dataclass
class Outcome:
    """What became of one engine request. failures: of the critic or the store."""

    answers: list[Answered] = field(default_factory=list)
    failures: int = 0
    input_blocked: bool = False


@dataclass
class GuardCall:
    """The guard's side of one HTTP request. The guarded engine fills it in.

    open_turn: all text since the last answer: what is judged as the input. tool_results: what tools
    and documents say in it. call_reader: reads the tool calls out of its answers, once vLLM's
    handler has left it here.
    masked_input: the names of criteria whose matches in the request were masked before it was read.
    wants_moderation: the caller asked for moderation scores of input and output.
    client: whom a rollout chooses an adapter for: the user, else the key, else the request's id.
    policy: what is decided by; None for the default policy.
    block_input, block_output: the caller wants flagged text blocked, whatever the policy says.
    stream: the stream mode the caller asked for; the server's mode applies if it is stricter.
    adapter, version: what the whole call is answered with, see pin().
    wants_json: the caller asked for an answer in JSON.
    output_rulings: by engine request id and choice index, since a call may have several of each.
    replaced: what was sent instead of withheld answers, by choice index; of several requests to the
    engine, the last. replacing: one of these has been passed on, and nothing of the answer follows.
    streaming_started: a stream's first chunk was released, perhaps before any final ruling.
    pending_input_verdicts: input critiques still running; nothing is released before they end.
    """

    route: str
    messages: Sequence[Message] = ()
    open_turn: str = ""
    tool_results: str = ""
    masked_input: frozenset[str] = frozenset()
    user: str | None = None
    client: str | None = None
    wants_moderation: bool = False
    policy: Policy | None = None
    block_input: bool = False
    block_output: bool = False
    wants_json: bool = False
    call_reader: CallReader | None = None
    stream: StreamMode | None = None
    adapter: str | None = None
    version: int | None = None
    input_ruling: Ruling | None = None
    output_rulings: dict[tuple[str, int], Ruling] = field(default_factory=dict)
    replaced: dict[int, Replacement] = field(default_factory=dict)
    replacing: bool = False
    streaming_started: bool = False
    pending_input_verdicts: int = 0
    error: GuardError | None = None

    def pin(self, adapter: str, version: int | None) -> None:
        """Sets the adapter for all this call generates, even if another becomes active."""
        self.adapter, self.version = adapter, version

    @property
    def has_outcome(self) -> bool:
        """Whether the guard has a first outcome: an error, a ruling or a released chunk."""
        if self.error is not None:
            return True
        return not self.pending_input_verdicts and (
            self.streaming_started or bool(self.output_rulings)
        )

    @property
    def filtered(self) -> bool:
        """Whether any answer was withheld in a way that the response must show."""
        return any(ruling.filtered for ruling in self.output_rulings.values())

    @property
    def annotated(self) -> bool:
        """Whether the response has the moderation field: the caller or the policy asked for it."""
        rulings = [*self.output_rulings.values(), *filter(None, [self.input_ruling])]
        acted_on = (ruling.decision.action is not Action.PASS for ruling in rulings)
        return self.wants_moderation or any(acted_on)


@dataclass(frozen=True)
class EngineRequest:
    """One request to the engine, as the guard handles it.

    prompt: the engine's input. prompt_ids: its tokens. max_tokens: the caller's limit.
    engine_options: the adapter and the priority, which its critiques use too.
    empty_reasoning: what must precede a replacement, if anything.
    outcome: what becomes of it. started: when it began, by time.perf_counter().
    """

    call: GuardCall
    request_id: str
    adapter: str
    prompt: dict[str, Any]
    prompt_ids: list[int]
    max_tokens: int | None
    engine_options: dict[str, Any]
    empty_reasoning: EmptyReasoning | None = None
    outcome: Outcome = field(default_factory=Outcome)
    started: float = field(default_factory=time.perf_counter)

    def replaced_by(
        self, replacement: Replacement, index: int, shown_ids: Sequence[int] = ()
    ) -> Replacement:
        """Notes that a choice is replaced. Returns the replacement as it is sent after
        `shown_ids`."""
        self.call.replaced[index] = replacement
        return (
            self.empty_reasoning.prepend_to(replacement, shown_ids)
            if self.empty_reasoning
            else replacement
        )


def non_text_parts(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parts of an engine input that are not text: images and the cache salt."""
    return {k: v for k, v in prompt.items() if k not in ("prompt", "prompt_token_ids")}


current_call: ContextVar[GuardCall | None] = ContextVar("current_call", default=None)
"""The call that the running task serves; None outside an HTTP request."""
