"""Writes the guard's findings into responses, in each API's own words. Owns OpenAI's `moderation`
field and how each API says "withheld"; changes nothing else of what vLLM answers.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

from guard.call import GuardCall, Ruling
from guard.errors import GuardError
from guard.policy import Decision
from guard.verdict import CATEGORIES, Verdict
from server.errors import guard_error_fields

Body = dict[str, Any]

_CHAT = "/v1/chat/completions"
_RESPONSES = "/v1/responses"
_MESSAGES = "/v1/messages"
_DONE = "data: [DONE]"
_NOT_RUN = {
    "type": "error",
    "code": "not_run",
    "message": "Not judged: send the moderation field to have the input judged.",
}
_CRITIC_FAILED = {
    "type": "error",
    "code": "critic_unavailable",
    "message": "The critique failed, and this server is set to let answers out when it does.",
}


def moderation_result(ruling: Ruling, model: str) -> Body:
    """One `moderation_result`, with what became of the text and how far it was judged; an error
    object when the critique failed.

    Without `category_scores` where nobody asked for them and nothing was flagged.
    """
    if ruling.verdict is None:
        return _CRITIC_FAILED
    return {
        "type": "moderation_result",
        "model": model,
        **category_fields(ruling.verdict, ruling.decision),
        "action": ruling.decision.action.value,
        "checked_characters": ruling.checked,
    }


def category_fields(verdict: Verdict, decision: Decision) -> Body:
    """`flagged`, `categories`, `category_scores` and `category_applied_input_types`; the scores are
    empty when they were not read."""
    scores = verdict.category_scores or {}
    return {
        "flagged": decision.flagged,
        "categories": {name: name in decision.categories for name in CATEGORIES},
        "category_scores": {name: scores[name] for name in CATEGORIES if scores},
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
    }


def completion_moderation(call: GuardCall, model: str) -> Body:
    """The `moderation` field of a moderated chat completion.

    Output results are in the order of the choices, each with its own state.
    """

    def side(rulings: list[Ruling]) -> Body:
        if all(ruling.verdict is None for ruling in rulings):
            return _CRITIC_FAILED
        results = [moderation_result(ruling, model) for ruling in rulings]
        return {"type": "moderation_results", "model": model, "results": results}

    return _sides(call, side)


def response_moderation(call: GuardCall, model: str) -> Body:
    """The `moderation` field of a moderated response: one result each, the worst; a failed critique
    is worse than any."""

    def harm(ruling: Ruling) -> float:
        return 1.0 if ruling.verdict is None else ruling.verdict.harm

    def side(rulings: list[Ruling]) -> Body:
        failed = [ruling for ruling in rulings if ruling.verdict is None]
        return moderation_result(max(failed or rulings, key=harm), model)

    return _sides(call, side)


def _sides(call: GuardCall, side: Callable[[list[Ruling]], Body]) -> Body:
    outputs = [call.output_rulings[key] for key in sorted(call.output_rulings)]
    inputs = [call.input_ruling] if call.input_ruling else []
    return {
        "input": side(inputs) if inputs else _NOT_RUN,
        "output": side(outputs) if outputs else _NOT_RUN,
    }


def annotate_body(call: GuardCall, body: Body) -> Body:
    """A whole JSON response with the guard's findings put in."""
    if call.route == _CHAT:
        return body | {"moderation": completion_moderation(call, body["model"])}
    if call.route == _RESPONSES:
        return _annotated_response(call, body)
    if call.route == _MESSAGES and call.blocked:
        return body | {"stop_reason": "refusal"}
    return body


def _annotated_response(call: GuardCall, response: Body) -> Body:
    response = response | {"moderation": response_moderation(call, response["model"])}
    if call.blocked:
        details = {"reason": "content_filter"}
        response |= {"status": "incomplete", "incomplete_details": details}
    return response


class StreamAnnotator:
    """Passes one stream's server-sent events on, adding what the guard found where it belongs."""

    def __init__(self, call: GuardCall) -> None:
        self._call = call
        self._last = ""
        self._failed = False

    def events(self, event: str) -> Iterable[str]:
        """What to send in place of `event`, both without the blank line that ends an event. Once
        the guard has failed that is said, and nothing after it."""
        if self._call.error is not None:
            return self.failure(self._call.error)
        if self._call.route == _CHAT:
            return self._chat(event)
        self._last = event
        if not self._call.annotated:
            return (event,)
        if self._call.route == _RESPONSES and "response.completed" in event:
            return (self._response(event),)
        if self._call.route == _MESSAGES and self._call.blocked and "message_delta" in event:
            return (self._message(event),)
        return (event,)

    def failure(self, error: GuardError) -> Iterable[str]:
        """The end of a stream that the guard could not go on with, once; never a finish."""
        if self._failed:
            return ()
        self._failed = True
        fields = guard_error_fields(error)
        if self._call.route == _RESPONSES:
            told = {name: fields[name] for name in ("code", "message", "param")}
            number = {"sequence_number": self._next_number()}
            return (_rendered("error", {"type": "error", **told, **number}),)
        if self._call.route == _MESSAGES:
            told = {"type": "api_error", "message": f"{fields['message']} ({fields['code']})"}
            return (_rendered("error", {"type": "error", "error": told}),)
        return (_rendered("", {"error": fields}), _DONE)

    def _next_number(self) -> int:
        number: int = _parsed(self._last)[1].get("sequence_number", -1) if self._last else -1
        return number + 1

    def _chat(self, event: str) -> Iterable[str]:
        if event == _DONE and self._call.annotated:
            return (self._moderation_chunk(), event)
        self._last = event
        return (event,)

    def _moderation_chunk(self) -> str:
        _, last = _parsed(self._last)
        same = {key: last.get(key) for key in ("id", "object", "created", "model")}
        field = completion_moderation(self._call, str(last.get("model")))
        return _rendered("", {**same, "choices": [], "moderation": field})

    def _response(self, event: str) -> str:
        name, data = _parsed(event)
        if data.get("type") != "response.completed":
            return event
        data["response"] = _annotated_response(self._call, data["response"])
        if self._call.blocked:
            name = data["type"] = "response.incomplete"
        return _rendered(name, data)

    def _message(self, event: str) -> str:
        name, data = _parsed(event)
        if data.get("type") == "message_delta":
            data["delta"]["stop_reason"] = "refusal"
        return _rendered(name, data)


def _parsed(event: str) -> tuple[str, Body]:
    """An event's name ("" if none) and its JSON object."""
    lines = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line)
    return lines.get("event", ""), json.loads(lines["data"])


def _rendered(name: str, data: Body) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}"
