"""One guarded request as it travels from the HTTP face to the engine and back. Owns what the
caller asked of the guard and what the guard found; decides nothing.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from guard.errors import GuardError
from guard.policy import Action, Decision
from guard.verdict import Verdict

Message = dict[str, str]


class StreamMode(StrEnum):
    """When a stream's text is let out, from the most lenient to the strictest.

    ASYNC: at once; verdicts follow and can end the stream, so flagged text may have been seen.
    WINDOW: once a verdict covers it. BUFFER: once the verdict on the whole answer is there.
    """

    ASYNC = "async"
    WINDOW = "window"
    BUFFER = "buffer"

    def or_stricter(self, other: "StreamMode | None") -> "StreamMode":
        """The stricter of both."""
        order = tuple(StreamMode)
        return max(self, other or self, key=order.index)


@dataclass(frozen=True)
class Replacement:
    """What stands in for a withheld answer: a refusal, or the model's own revision of it.

    tokens: how many were generated for it.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: int = 0


@dataclass(frozen=True)
class Opening:
    """An empty thought, for a server that tells thoughts from answers: what comes before its end is
    no answer to it. text, token_ids: of the whole. end: the text of its last token, the end mark.
    """

    text: str
    token_ids: tuple[int, ...]
    end: str

    def before(self, replacement: Replacement, shown_ids: Sequence[int]) -> Replacement:
        """The replacement with what makes it an answer. shown_ids: what is out before it."""
        if self.token_ids[-1] in shown_ids:
            return replacement
        text, ids = (self.end, self.token_ids[-1:]) if shown_ids else (self.text, self.token_ids)
        return replace(
            replacement, text=text + replacement.text, token_ids=ids + replacement.token_ids
        )


@dataclass(frozen=True)
class Ruling:
    """What was found and decided about one text: a draft or the input.

    verdict is None when the critique failed and failures are configured to let answers out.
    checked: how many characters of the text, from its start, the verdict covers.
    revision: what is let out instead, once the action "revise" succeeded.
    """

    verdict: Verdict | None
    decision: Decision
    checked: int
    revision: Replacement | None = None

    @property
    def withheld(self) -> bool:
        """Whether the text is not let out."""
        return self.decision.action in (Action.REVISE, Action.BLOCK)


@dataclass
class GuardCall:
    """The guard's side of one HTTP request; filled by the guarded engine.

    wants_moderation: the caller asked for scores of input and output.
    block_input, block_output: the caller asked that flagged text be blocked whatever the policy.
    stream: how strictly the caller wants its stream held back; the setting holds if it is stricter.
    output_rulings: by engine request id and choice index, since one call may make several of each.
    adapter, version: what the whole call is answered with; see pin().
    flowing: whether a stream began to be let out, which it may before any ruling is final.
    inputs_awaited: verdicts on what was asked that are still out; nothing is let out before them.
    """

    route: str
    messages: Sequence[Message] = ()
    user: str | None = None
    wants_moderation: bool = False
    block_input: bool = False
    block_output: bool = False
    stream: StreamMode | None = None
    adapter: str | None = None
    version: int | None = None
    input_ruling: Ruling | None = None
    output_rulings: dict[tuple[str, int], Ruling] = field(default_factory=dict)
    flowing: bool = False
    inputs_awaited: int = 0
    error: GuardError | None = None

    def pin(self, adapter: str, version: int | None) -> None:
        """Chooses the adapter for all that this call generates, though another become active."""
        self.adapter, self.version = adapter, version

    @property
    def settled(self) -> bool:
        """Whether the guard has come to a first outcome, good or bad."""
        if self.error is not None:
            return True
        return not self.inputs_awaited and (self.flowing or bool(self.output_rulings))

    @property
    def withheld(self) -> bool:
        """Whether any answer was withheld, for a refusal or a revision of it."""
        return any(ruling.withheld for ruling in self.output_rulings.values())

    @property
    def annotated(self) -> bool:
        """Whether the response carries the moderation field: asked for, or by the policy."""
        acted_on = (r.decision.action is not Action.PASS for r in self.output_rulings.values())
        return self.wants_moderation or any(acted_on)


@dataclass(frozen=True)
class EngineRequest:
    """One request to the engine on its way through the guard.

    prompt: the engine's input. prompt_ids: its tokens. max_tokens: the most that the caller wants
    of an answer. engine_options: what its critiques share with it, the adapter and the priority.
    opening: what must come before a replacement, if anything.
    """

    call: GuardCall
    request_id: str
    adapter: str
    prompt: dict[str, Any]
    prompt_ids: list[int]
    max_tokens: int | None
    engine_options: dict[str, Any]
    opening: Opening | None = None

    def opened(self, replacement: Replacement, shown_ids: Sequence[int] = ()) -> Replacement:
        """A replacement as it is let out after `shown_ids`."""
        return self.opening.before(replacement, shown_ids) if self.opening else replacement


def parts_besides_words(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """An engine input's other parts, such as images and the cache salt."""
    return {k: v for k, v in prompt.items() if k not in ("prompt", "prompt_token_ids")}


current_call: ContextVar[GuardCall | None] = ContextVar("current_call", default=None)
"""The call that the running task serves; None for work that no HTTP request asked for."""
