"""Writes the guard's findings into responses. Owns OpenAI's `moderation` field, how each API says
that an answer was withheld, and how its streams report a failure of the guard. Changes nothing else
in vLLM's responses.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

from guard.call import GuardCall, Ruling
from guard.errors import GuardError
from guard.policy import STRICTNESS, Action, Decision
from guard.verdict import CATEGORIES, Verdict
from server.errors import STATUS, error_fields
from server.guarded.anthropic_errors import anthropic_type
from server.guarded.replaced import chat_body, chat_chunk, message_body, response_body
from server.guarded.replaced_streams import NOTED_EVENTS, MessageEvents, ResponseEvents

Body = dict[str, Any]

_CHAT = "/v1/chat/completions"
_RESPONSES = "/v1/responses"
_MESSAGES = "/v1/messages"
_DONE = "data: [DONE]"
_PARSED_EVENTS = (*NOTED_EVENTS, "response.completed", "message_delta")
_INPUT_NOT_RUN = {
    "type": "error",
    "code": "not_run",
    "message": "Not judged: send the moderation field to have the input judged.",
}
_OUTPUT_NOT_RUN = {"type": "error", "code": "not_run", "message": "There was no answer to judge."}
_CRITIC_FAILED = {
    "type": "error",
    "code": "critic_unavailable",
    "message": "The critique failed, and this server is set to release answers when it does.",
}


def category_fields(verdict: Verdict, decision: Decision) -> Body:
    """Returns `flagged`, `categories`, `category_scores` and `category_applied_input_types`, with
    the policy's criteria beside the categories. A category has no score where categories were not
    read: nothing was flagged and nobody asked for scores."""
    names = (*CATEGORIES, *verdict.criteria)
    return {
        "flagged": decision.flagged,
        "categories": {name: name in decision.categories for name in names},
        "category_scores": dict(verdict.scores),
        "category_applied_input_types": {name: ["text"] for name in names},
    }


def completion_moderation(call: GuardCall, model: str) -> Body:
    """Returns the `moderation` field of a chat completion.

    The output has one result for each choice, in order; a choice whose critique failed has an error
    object. If all failed, the error replaces the results.
    """

    def side(results: list[Body]) -> Body:
        if all(result is _CRITIC_FAILED for result in results):
            return _CRITIC_FAILED
        return {"type": "moderation_results", "model": model, "results": results}

    return _sides(call, model, side)


def response_moderation(call: GuardCall, model: str) -> Body:
    """Returns the `moderation` field of a response: the worst result of each side. A failed
    critique counts as worse than any that flagged nothing."""

    def side(results: list[Body]) -> Body:
        flagged = [result for result in results if result.get("flagged")]
        if not flagged and _CRITIC_FAILED in results:
            return _CRITIC_FAILED
        return max(flagged or results, key=_severity)

    return _sides(call, model, side)


def _sides(call: GuardCall, model: str, side: Callable[[list[Body]], Body]) -> Body:
    input_ruling, answers = call.input_ruling, call.output_rulings
    outputs = [
        _result(answers[key], answers[key].decision.action, model) for key in sorted(answers)
    ]
    inputs = (
        [_result(input_ruling, _input_action(call, input_ruling), model)] if input_ruling else []
    )
    return {
        "input": side(inputs) if inputs else _INPUT_NOT_RUN,
        "output": side(outputs) if outputs else _OUTPUT_NOT_RUN,
    }


def _result(ruling: Ruling, action: Action, model: str) -> Body:
    """Returns one `moderation_result` with the checked length and the action, or an error object if
    the critique failed."""
    if ruling.verdict is None:
        return _CRITIC_FAILED
    fields = category_fields(ruling.verdict, ruling.decision)
    guard_fields = {"action": action.value, "checked_characters": ruling.checked}
    return {"type": "moderation_result", "model": model, **fields, **guard_fields}


def _input_action(call: GuardCall, ruling: Ruling) -> Action:
    if call.masked_input:
        return Action.MASK
    # Input that was answered was not blocked, whatever the policy says about answers.
    return Action.ANNOTATE if ruling.decision.flagged else Action.PASS


def _severity(result: Body) -> tuple[int, float]:
    return STRICTNESS[Action(result["action"])], sum(result["category_scores"].values())


def annotate_body(call: GuardCall, body: Body) -> Body:
    """Returns a whole JSON response with the guard's findings added."""
    if call.route == _CHAT:
        field = completion_moderation(call, body["model"])
        return chat_body(call, body) | {"moderation": field}
    if call.route == _RESPONSES:
        return _annotated_response(call, body)
    if call.route == _MESSAGES:
        stopped = {"stop_reason": "refusal"} if call.filtered else {}
        return message_body(call, body) | stopped
    return body


def _annotated_response(call: GuardCall, response: Body) -> Body:
    moderation = response_moderation(call, response["model"])
    response = response_body(call, response) | {"moderation": moderation}
    if call.filtered:
        details = {"reason": "content_filter"}
        response |= {"status": "incomplete", "incomplete_details": details}
    return response


class StreamAnnotator:
    """Adds the guard's findings to the server-sent events of one stream."""

    def __init__(self, call: GuardCall) -> None:
        self._call = call
        self._last = "data: {}"
        self._responses = ResponseEvents(call)
        self._messages = MessageEvents(call)

    def events(self, event: str) -> Iterable[str]:
        """Returns the events to send instead of `event`, without their terminating blank lines."""
        if event.startswith(":"):
            # A comment that keeps the connection alive.
            return (event,)
        previous, self._last = self._last, event
        if self._call.route == _CHAT:
            return self._chat(event, previous)
        if self._call.route not in (_RESPONSES, _MESSAGES) or event == _DONE:
            return (event,)
        # Most events are text of an answer that nobody withholds: they are not parsed.
        if not self._call.replacing and not any(name in event for name in _PARSED_EVENTS):
            return (event,)
        _, data = _parsed(event)
        if self._call.route == _RESPONSES:
            sent = [self._response(one) for one in self._responses.of(data)]
        else:
            sent = [self._message(one) for one in self._messages.of(data)]
        if sent == [data]:
            return (event,)
        return [_rendered(str(one.get("type")), one) for one in sent]

    def failure(self, error: GuardError) -> str:
        """Returns the event that ends the stream when the guard fails, so that the part sent so far
        is not taken for a whole answer."""
        fields = error_fields(error)
        if self._call.route == _RESPONSES:
            number = _parsed(self._last)[1].get("sequence_number", -1) + 1
            # As OpenAI documents it; its clients raise an exception only for `error` events.
            event = fields | {"type": "error", "sequence_number": number, "error": fields}
            return _rendered("error", event)
        if self._call.route == _MESSAGES:
            fields |= {"type": anthropic_type(STATUS[type(error)])}
            return _rendered("error", {"type": "error", "error": fields})
        return _rendered("", {"error": fields})

    def _chat(self, event: str, previous: str) -> Iterable[str]:
        if self._call.replaced and event != _DONE:
            name, chunk = _parsed(event)
            changed = chat_chunk(self._call, chunk)
            event = _rendered(name, changed) if changed else event
        if event == _DONE and self._call.wants_moderation:
            _, last = _parsed(previous)
            # A stream that vLLM ended with an error has no answer to moderate.
            if "error" not in last:
                return (self._moderation_chunk(last), event)
        if event != _DONE and self._call.annotated and not self._call.wants_moderation:
            return (self._annotated_last_chunk(event),)
        return (event,)

    def _annotated_last_chunk(self, event: str) -> str:
        """Returns a choice's last chunk with the findings. Clients that did not ask for them get no
        chunk of its own: many fail on one without choices."""
        name, chunk = _parsed(event)
        if not any(choice.get("finish_reason") for choice in chunk.get("choices") or ()):
            return event
        field = completion_moderation(self._call, str(chunk.get("model")))
        return _rendered(name, {**chunk, "moderation": field})

    def _moderation_chunk(self, last: Body) -> str:
        same = {key: last.get(key) for key in ("id", "object", "created", "model")}
        field = completion_moderation(self._call, str(last.get("model")))
        return _rendered("", {**same, "choices": [], "moderation": field})

    def _response(self, data: Body) -> Body:
        if data.get("type") != "response.completed" or not self._call.annotated:
            return data
        kind = "response.incomplete" if self._call.filtered else data["type"]
        response = _annotated_response(self._call, data["response"])
        return {**data, "type": kind, "response": response}

    def _message(self, data: Body) -> Body:
        if data.get("type") != "message_delta" or not self._call.filtered:
            return data
        return {**data, "delta": {**data["delta"], "stop_reason": "refusal"}}


def _parsed(event: str) -> tuple[str, Body]:
    """Returns an event's name ("" if none) and its JSON object."""
    lines = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line)
    return lines.get("event", ""), json.loads(lines["data"])


def _rendered(name: str, data: Body) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}"
