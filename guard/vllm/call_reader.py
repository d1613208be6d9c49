"""Reads the tool calls out of an answer with the parser that vLLM's own handler made for the
request, so that what is judged is what the client gets. Owns how the parser is had from a handler.
Does not judge calls (guard/tool_calls.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

from guard.call import current_call
from guard.errors import CriticUnavailable
from guard.tool_calls import Piece, ToolCall

_MAKERS = ("_make_parser", "_make_response_parser")
"""Of the handlers for chat completions, which Anthropic's messages are too, and for responses."""


@dataclass(frozen=True)
class ParserCallReader:
    """make_parser: returns a new parser, which is good for one answer. request: as vLLM parsed it.
    auto: whether the server reads calls that the request leaves to the model."""

    make_parser: Callable[[], Any]
    request: Any
    auto: bool

    @cached_property
    def expects_calls(self) -> bool:
        """Whether the request and the server allow calls at all."""
        parser = self.make_parser()
        has_calls = parser is not None and type(parser).tool_parser_cls is not None
        return has_calls and self.request.tool_choice != "none"

    def calls(self, prompt_ids: Sequence[int], pieces: Sequence[Piece]) -> tuple[ToolCall, ...]:
        """Returns the calls in an answer that is sent in these pieces. Raises CriticUnavailable
        when the parser fails."""
        if not self.expects_calls:
            return ()
        read = self._streamed if self.request.stream else self._whole
        try:
            return tuple(read(self.make_parser(), prompt_ids, pieces))
        except Exception as error:
            raise CriticUnavailable(
                f"The tool calls of the answer cannot be read: {type(error).__name__}."
            ) from error

    def _whole(
        self, parser: Any, prompt_ids: Sequence[int], pieces: Sequence[Piece]
    ) -> Iterator[ToolCall]:
        parser.set_prompt_token_ids(prompt_ids)
        _, _, calls = parser.parse(
            "".join(text for text, _ in pieces),
            self.request,
            enable_auto_tools=self.auto,
            model_output_token_ids=[token for _, tokens in pieces for token in tokens],
        )
        for call in calls or ():
            yield ToolCall(call.name, call.arguments)

    def _streamed(
        self, parser: Any, prompt_ids: Sequence[int], pieces: Sequence[Piece]
    ) -> Iterator[ToolCall]:
        """Reads piece by piece: of a call that is cut off, streams send what there is."""
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        for number, (text, tokens) in enumerate(pieces, 1):
            delta = parser.parse_delta(
                text,
                list(tokens),
                self.request,
                prompt_token_ids=list(prompt_ids),
                finished=number == len(pieces),
            )
            for called in (delta and delta.tool_calls) or ():
                function = called.function
                names[called.index] = names.get(called.index, "") + (function.name or "")
                added = function.arguments or ""
                arguments[called.index] = arguments.get(called.index, "") + added
        for index, name in names.items():
            yield ToolCall(name, arguments[index])


def read_calls_of(handler: Any) -> None:
    """Makes a handler leave the reader of its answer's calls in the running GuardCall."""
    for name in _MAKERS:
        make = getattr(handler, name, None)
        if make is not None and not hasattr(make, "__wrapped__"):
            setattr(handler, name, _noting(make, handler))


def _noting(make: Callable[..., Any], handler: Any) -> Callable[..., Any]:
    @wraps(make)
    def made(request: Any, *rest: Any) -> Any:
        call = current_call.get()
        if call is not None:
            call.call_reader = ParserCallReader(
                lambda: make(request, *rest), request, handler.enable_auto_tools
            )
        return make(request, *rest)

    return made
