"""Puts what is sent instead of a withheld answer where each API has a place for it. vLLM parses it
like any answer of the model, so with tools it would end up among a call's arguments, and where JSON
was asked for it would be content that is no JSON. Owns these places. Does not decide what is sent.
"""

from collections.abc import Mapping
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from guard.call import GuardCall, Replacement

Body = dict[str, Any]


def chat_body(call: GuardCall, body: Body) -> Body:
    """Returns a chat completion with the replacements as content, or as `refusal` where JSON was
    asked for, and without tool calls."""
    replaced = call.replaced
    return body | {
        "choices": [
            choice
            if choice["index"] not in replaced
            else choice
            | {
                "message": choice["message"] | _message(call, replaced[choice["index"]]),
                "finish_reason": replaced[choice["index"]].finish_reason,
            }
            for choice in body["choices"]
        ]
    }


def chat_chunk(call: GuardCall, chunk: Body) -> Body | None:
    """Returns a stream's chunk with the replacement of its choice in its place, or None if it needs
    no change. A replacement is in the last chunk of its choice."""
    choices = chunk.get("choices") or ()
    changed = [_last_choice(call, choice) for choice in choices]
    if not any(changed):
        return None
    return chunk | {
        "choices": [new or old for new, old in zip(changed, choices, strict=True)],
    }


def response_body(call: GuardCall, response: Body) -> Body:
    """Returns a response in which the replacement is a message, and no tool call or JSON."""
    if not call.replaced:
        return response
    items = response.get("output") or ()
    kept = [item for item in items if item.get("type") != "function_call"]
    has_message = any(item.get("type") == "message" for item in kept)
    if has_message and not call.wants_json:
        return response | {"output": kept}
    kept = [item for item in kept if item.get("type") != "message"]
    return response | {"output": [*kept, response_message(call)]}


def message_body(call: GuardCall, message: Body) -> Body:
    """Returns an Anthropic message whose content is the replacement, without tool uses."""
    if not call.replaced:
        return message
    kept = [block for block in message.get("content") or () if block.get("type") != "tool_use"]
    if any(block.get("type") == "text" for block in kept):
        return message | {"content": kept}
    return message | {"content": [*kept, {"type": "text", "text": last_replacement(call).text}]}


def last_replacement(call: GuardCall) -> Replacement:
    """Returns the replacement of a call whose answer has one choice."""
    return list(call.replaced.values())[-1]


def response_message(call: GuardCall) -> Body:
    """Returns the output item of the Responses API that holds the replacement."""
    text = last_replacement(call).text
    # The same in a stream's events and in the response at its end.
    request_id, _ = next(reversed(call.output_rulings), ("", 0))
    content: Body = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": f"msg_{uuid5(NAMESPACE_OID, request_id).hex}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "refusal", "refusal": text} if call.wants_json else content],
    }


def _message(call: GuardCall, replacement: Replacement) -> Body:
    content = None if call.wants_json else replacement.text
    refusal = replacement.text if call.wants_json else None
    return {"content": content, "refusal": refusal, "tool_calls": []}


def _last_choice(call: GuardCall, choice: Mapping[str, Any]) -> Body | None:
    replacement = call.replaced.get(choice.get("index", 0))
    if replacement is None or not choice.get("finish_reason"):
        return None
    delta = choice.get("delta") or {}
    if not call.wants_json and str(delta.get("content") or "").endswith(replacement.text):
        return None
    field = "refusal" if call.wants_json else "content"
    kept = {name: value for name, value in delta.items() if name not in ("content", "tool_calls")}
    return {
        **choice,
        "delta": kept | {field: replacement.text},
        "finish_reason": replacement.finish_reason,
    }
