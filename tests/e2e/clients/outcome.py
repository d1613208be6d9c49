"""What the client scripts share: each reads calls from standard input and writes, as one JSON list,
what its user got from each of them. Knows no client.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

Got = dict[str, Any]
_AT_ONCE = 8


class Answer(BaseModel):
    """The answer that is asked for in JSON, and the arguments of the tool."""

    plant: Literal["fern", "rose"]


@dataclass(frozen=True)
class Request:
    """One call. extra: fields that the client is told to add to the request's body."""

    call: str
    base_url: str
    model: str
    text: str
    max_tokens: int = 120
    extra: dict[str, Any] = field(default_factory=dict)


Call = Callable[[Request, Got], None]
"""Makes a call and fills in what its user gets, so that an error leaves what came before it."""


def main(calls: Mapping[str, Call]) -> None:
    """Makes the calls that standard input asks for, some at a time."""
    requests = [Request(**one) for one in json.load(sys.stdin)]
    # Libraries print hints; standard output must hold only the list.
    with contextlib.redirect_stdout(sys.stderr), ThreadPoolExecutor(_AT_ONCE) as threads:
        outcomes = list(
            threads.map(lambda request: _outcome(calls[request.call], request), requests)
        )
    json.dump(outcomes, sys.stdout)


def _outcome(call: Call, request: Request) -> Got:
    got: Got = {"text": "", "finish": None, "refusal": None, "tools": [], "parsed": None}
    try:
        call(request, got)
    except Exception as error:
        got["error"] = {
            "types": [cls.__name__ for cls in type(error).__mro__],
            "message": str(error),
            "status": getattr(error, "status_code", None),
        }
    return got
