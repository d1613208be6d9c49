"""What a policy masks in a request, or in an answer that is let out: a placeholder stands for each
word, pattern or item of personal data. Owns the placeholders and what else an output must not tell
of them. Does not find anything (matchers.py), decide (policy.py) or read requests (server/).
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

from vllm.outputs import CompletionOutput

from guard.criteria import Criterion, Place
from guard.draft import Choice, OutputReplacement, blank_logprobs
from guard.matchers import SpanMatcher
from guard.policy import Policy
from guard.redact import Finding, merged_overlaps


class Masking:
    """Masks outputs. filler: the token that stands for hidden ones. kept: tokens that are never
    hidden, because a parser of reasoning or of tool calls needs them.
    """

    def __init__(self, filler: int, kept: frozenset[int]) -> None:
        self._filler = filler
        self._kept = kept

    def whole(self, choice: Choice, policy: Policy) -> OutputReplacement | None:
        """Returns what makes a choice's only output of its last one, with the whole text masked;
        None if there is nothing to mask."""
        findings = _placed(_findings(policy.masked_in(Place.OUTPUT), choice.text))
        if not findings:
            return None

        def replacement(last: CompletionOutput) -> CompletionOutput:
            output = copy(last)
            output.text, output.token_ids = choice.text, choice.token_ids
            output.logprobs = [] if choice.has_logprobs else None
            return self._output(output, choice, findings, start=0)

        return replacement

    def part(
        self, output: CompletionOutput, choice: Choice, policy: Policy, *, start: int
    ) -> CompletionOutput:
        """Returns an output of a choice, masked; the same one where nothing is masked in it.

        start: where its text begins in the choice's. A match that began before it is left out.
        """
        end = start + len(output.text)
        findings = [
            finding
            for finding in _placed(_findings(policy.masked_in(Place.OUTPUT), choice.text))
            if finding.start < end and finding.end > start
        ]
        return self._output(output, choice, findings, start=start) if findings else output

    def _output(
        self,
        output: CompletionOutput,
        choice: Choice,
        findings: Sequence[Finding],
        *,
        start: int,
    ) -> CompletionOutput:
        masked = copy(output)
        masked.text = _masked(choice.text, findings, start, start + len(output.text))
        masked.token_ids = [t if t in self._kept else self._filler for t in output.token_ids]
        if output.logprobs is not None:
            masked.logprobs = blank_logprobs(masked.token_ids)
            masked.cumulative_logprob = None
        return masked


def masked_text(text: str, criteria: Sequence[Criterion]) -> tuple[str, frozenset[str]]:
    """Returns the text with placeholders for what the criteria find, and the names of those that
    find something."""
    findings = _findings(criteria, text)
    names = frozenset(criterion.name for criterion, _ in findings)
    return _masked(text, _placed(findings), 0, len(text)), names


def _findings(criteria: Sequence[Criterion], text: str) -> list[tuple[Criterion, Finding]]:
    return [
        (criterion, finding)
        for criterion in criteria
        if isinstance(criterion.matcher, SpanMatcher)
        for finding in criterion.matcher.findings(text)
    ]


def _placed(findings: Sequence[tuple[Criterion, Finding]]) -> list[Finding]:
    """Returns what is masked in a text, in order and without overlaps, each with the name of its
    placeholder."""
    return merged_overlaps(
        replace(finding, name=finding.name or criterion.name) for criterion, finding in findings
    )


def _masked(text: str, findings: Sequence[Finding], start: int, end: int) -> str:
    parts, done = [], start
    for finding in findings:
        if finding.start >= start:
            parts += [text[done : finding.start], f"<{finding.name}>"]
        done = min(finding.end, end)
    return "".join([*parts, text[done:end]])
