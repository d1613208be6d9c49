"""Puts the replacement of a withheld answer where it belongs in the event streams of /v1/responses
and /v1/messages, if vLLM has parsed it into a tool call or sends it as the JSON that was asked for.
Owns which events are dropped and added. The streams of chat completions are in replaced.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from guard.call import GuardCall
from server.guarded.replaced import last_replacement, response_message

Event = dict[str, Any]

_ITEM_ADDED, _ITEM_DONE = "response.output_item.added", "response.output_item.done"
_ARGUMENTS = "response.function_call_arguments"
NOTED_EVENTS = (_ITEM_ADDED, f"{_ARGUMENTS}.delta", "content_block_start")
"""The events to pass to `of` before anything is replaced. Afterwards it takes all of them."""


@dataclass
class MessageEvents:
    """The events of one Anthropic message. Once the replacement is passed on, tool input stops, and
    the replacement is a block of text before the message's end."""

    call: GuardCall
    _blocks: int = 0
    _in_dropped_tool: bool = False
    _shown: bool = False

    def of(self, event: Event) -> Iterator[Event]:
        """Yields what is sent instead of an event."""
        kind = event.get("type")
        if self.call.replacing:
            if self._is_dropped(event):
                return
            if kind == "message_delta" and not self._shown:
                yield from self._text_block()
        if kind == "content_block_start":
            self._blocks = event["index"] + 1
        yield event

    def _is_dropped(self, event: Event) -> bool:
        """Whether the event is part of a tool use made of the replacement."""
        kind, delta = event.get("type"), event.get("delta") or {}
        self._shown |= delta.get("type") == "text_delta"
        if kind == "content_block_start":
            self._in_dropped_tool = event["content_block"]["type"] == "tool_use"
        if kind == "content_block_stop" and self._in_dropped_tool:
            self._in_dropped_tool = False
            return True
        return self._in_dropped_tool or delta.get("type") == "input_json_delta"

    def _text_block(self) -> Iterator[Event]:
        self._shown = True
        same = {"index": self._blocks}
        delta = {"type": "text_delta", "text": last_replacement(self.call).text}
        yield {"type": "content_block_start", **same, "content_block": {"type": "text", "text": ""}}
        yield {"type": "content_block_delta", **same, "delta": delta}
        yield {"type": "content_block_stop", **same}


@dataclass
class ResponseEvents:
    """The events of one response. Once the replacement is passed on, arguments stop, text too where
    JSON was asked for, and the replacement is a message before the response's end.

    _arguments: what was sent of each call's arguments. _begun: the items that the client knows.
    _added: events added less those dropped.
    """

    call: GuardCall
    _arguments: dict[str, str] = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)
    _items: int = 0
    _added: int = 0
    _shown: bool = False

    def of(self, event: Event) -> Iterator[Event]:
        """Yields what is sent instead of an event."""
        number = event.get("sequence_number", 0)
        sent = list(self._replacing(event) if self.call.replacing else self._noted(event))
        for place, one in enumerate(sent):
            yield (
                one
                if not self._added and one is event and not place
                else {
                    **one,
                    "sequence_number": number + self._added + place,
                }
            )
        self._added += len(sent) - 1

    def _noted(self, event: Event) -> Iterator[Event]:
        kind = event.get("type")
        if kind == _ITEM_ADDED:
            self._items = event["output_index"] + 1
            if event["item"]["type"] == "function_call":
                self._arguments[event["item"].get("id") or ""] = ""
            self._begun.add(event["item"].get("id") or "")
        elif kind == f"{_ARGUMENTS}.delta":
            self._arguments[event["item_id"]] += event["delta"]
        yield event

    def _replacing(self, event: Event) -> Iterator[Event]:
        kind, item = str(event.get("type")), event.get("item") or {}
        if kind.startswith(_ARGUMENTS) or item.get("type") == "function_call":
            yield from self._end_of_call(event)
            return
        if self.call.wants_json and _is_text(event):
            yield from self._end_of_text(event)
            return
        self._shown |= kind == "response.output_text.delta"
        if kind == _ITEM_ADDED:
            self._items = event["output_index"] + 1
        if kind == "response.completed" and not self._shown:
            yield from self._message()
        yield event

    def _end_of_call(self, event: Event) -> Iterator[Event]:
        """Yields the end of a call that the client knows, with what it was sent of it."""
        item = event.get("item") or {}
        sent = self._arguments.get(str(event.get("item_id") or item.get("id") or ""))
        if sent is None:
            return
        if event["type"] == f"{_ARGUMENTS}.done":
            yield {**event, "arguments": sent}
        elif event["type"] == _ITEM_DONE:
            yield {**event, "item": {**item, "arguments": sent, "status": "incomplete"}}

    def _end_of_text(self, event: Event) -> Iterator[Event]:
        """Yields the end of a message that the client knows, with what it was sent of it. Nothing
        else: helpers read the text of other ends as the JSON that was asked for."""
        item = event.get("item") or {}
        if event["type"] == _ITEM_DONE and item["id"] in self._begun:
            replacement = last_replacement(self.call).text
            parts = [
                {**part, "text": part["text"].removesuffix(replacement).removesuffix("\n\n")}
                for part in item["content"]
            ]
            yield {**event, "item": {**item, "content": parts, "status": "incomplete"}}

    def _message(self) -> Iterator[Event]:
        self._shown = True
        item = response_message(self.call)
        (part,) = item["content"]
        text, name, more = "text", "output_text", dict[str, Any](logprobs=[])
        if self.call.wants_json:
            text, name, more = ("refusal", "refusal", {})
        of_item = {"output_index": self._items}
        of_part = {**of_item, "item_id": item["id"], "content_index": 0}
        begun = {**item, "status": "in_progress", "content": []}
        yield {"type": _ITEM_ADDED, "item": begun, **of_item}
        yield {"type": "response.content_part.added", "part": {**part, text: ""}, **of_part}
        yield {"type": f"response.{name}.delta", "delta": part[text], **more, **of_part}
        yield {"type": f"response.{name}.done", text: part[text], **more, **of_part}
        yield {"type": "response.content_part.done", "part": part, **of_part}
        yield {"type": _ITEM_DONE, "item": item, **of_item}


def _is_text(event: Event) -> bool:
    """Whether the event is part of a message of text."""
    kinds = ((event.get(holder) or {}).get("type") for holder in ("item", "part"))
    return str(event["type"]).startswith("response.output_text") or any(
        kind in ("message", "output_text") for kind in kinds
    )
