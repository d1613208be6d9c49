"""One ruling on one text: the critique, the policy's decision on it, and what happens when the
critique fails. Owns this step for answers and inputs alike. Does not choose what is judged
(judge.py, input_judge.py).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from opentelemetry.trace import Span

from guard.call import EngineRequest, Ruling
from guard.criteria import Criterion
from guard.critic import Critic
from guard.errors import CriticUnavailable, GuardError
from guard.label_reader import Subject
from guard.observer import Observer
from guard.policies import Policies
from guard.policy import Action, Decision, Policy
from guard.tool_calls import ToolCall
from guard.traces import note, span
from guard.verdict import Verdict


@dataclass(frozen=True)
class Rulings:
    """Rules on texts.

    fail_open: release a text when its critique fails.
    """

    critic: Critic
    policies: Policies
    observer: Observer
    fail_open: bool

    def policy_of(self, request: EngineRequest) -> Policy:
        """Returns the policy that a request got, or the default one outside an HTTP request."""
        return request.call.policy or self.policies.current.default

    async def rule(
        self, request: EngineRequest, subject: Subject, checked: int, *, of: str, **options: Any
    ) -> Ruling:
        """As `judge`, but a failed critique is counted, and passes the text when failing open."""
        return await self._unless_failed(
            request, self.judge(request, subject, checked, of=of, **options)
        )

    async def rule_by_criteria(
        self,
        request: EngineRequest,
        text: Subject,
        checked: int,
        *,
        of: str,
        criteria: Sequence[Criterion],
    ) -> Ruling:
        """As `rule`, by criteria alone: harm is not read."""
        reading = self.critic.read_criteria(text, criteria, **request.engine_options)
        decide = self.policy_of(request).decide_on_criteria
        return await self._unless_failed(
            request, self._ruled(request, of, checked, reading, decide)
        )

    async def judge(
        self,
        request: EngineRequest,
        subject: Subject,
        checked: int,
        *,
        of: str,
        scores: bool = False,
        criteria: Sequence[Criterion] = (),
        calls: Sequence[ToolCall] = (),
        label_logprobs: Mapping[int, float] | None = None,
    ) -> Ruling:
        """Returns the ruling on a subject.

        checked: its number of characters. of: what it is, in traces. scores: read categories even
        when not flagged. calls: an answer's tool calls. label_logprobs: what the answer's own
        session read already. Raises CriticUnavailable.
        """
        policy = self.policy_of(request)
        reading = self.critic.judge(
            subject,
            categories_from=0.0 if scores else policy.lowest_threshold,
            criteria=criteria,
            label_logprobs=label_logprobs,
            **request.engine_options,
        )
        in_calls = policy.found_in(calls)
        return await self._ruled(request, of, checked, reading, policy.decide, in_calls)

    async def _ruled(
        self,
        request: EngineRequest,
        of: str,
        checked: int,
        reading: Awaitable[Verdict],
        decide: Callable[[Verdict], Decision],
        in_calls: Mapping[str, float] = MappingProxyType({}),
    ) -> Ruling:
        """Returns the decision on a verdict. in_calls: what was found in an answer's tool calls."""
        with span(
            "critique", request_id=request.request_id, adapter=request.adapter, of=of
        ) as critique_span:
            verdict = await reading
            self.observer.critique_tokens(verdict.tokens)
            if in_calls:
                verdict = verdict.with_criteria(in_calls)
            ruling = Ruling(verdict, decide(verdict), checked)
            _note_ruling(critique_span, ruling)
            return ruling

    async def _unless_failed(self, request: EngineRequest, ruling: Awaitable[Ruling]) -> Ruling:
        try:
            return await ruling
        except CriticUnavailable as error:
            self.failed(request, error)
            passed = Decision(Action.PASS, (), "The critique failed; failing open.")
            return Ruling(None, passed, checked=0)

    def failed(self, request: EngineRequest, error: GuardError) -> None:
        """Counts a failure, and raises it unless failing open."""
        self.observer.failed(error.code)
        request.outcome.failures += 1
        if not self.fail_open:
            raise error

    def counted_by(self, request: EngineRequest) -> dict[str, str]:
        """Returns what events of the request are counted by: its adapter and its policy."""
        return {"adapter": request.adapter, "policy": self.policy_of(request).name}

    def count(self, request: EngineRequest, ruling: Ruling) -> None:
        """Counts the verdict by what it flagged first."""
        if ruling.verdict is not None:
            categories = ruling.decision.categories
            category = categories[0] if categories else "none"
            self.observer.verdict(category, **self.counted_by(request))


def _note_ruling(critique_span: Span, ruling: Ruling) -> None:
    """Records the ruling's figures and names on the span."""
    if critique_span.is_recording() and ruling.verdict is not None:
        note(
            critique_span,
            harm=ruling.verdict.harm,
            categories=ruling.decision.categories,
            action=ruling.decision.action.value,
            checked_characters=ruling.checked,
        )
