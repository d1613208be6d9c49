"""Requests generated from /openapi.json: valid ones and invalid ones."""

from collections.abc import Callable
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

Change = Callable[[dict[str, Any]], None]
_PARTS = ("path_parameters", "query", "body")
_FIELDS = ("method", "url", "headers", "params", "cookies", "json", "data", "files")


class Fuzz:
    """Generates reproducible requests.

    change: modifies each group of fields before sending: path, query or body.
    """

    def __init__(self, document: dict[str, Any], base_url: str, change: Change) -> None:
        self._schema = schemathesis.openapi.from_dict(document)
        self._methods = {path: [*methods] for path, methods in document["paths"].items()}
        self._base_url = base_url
        self._change = change

    def attempt(self, path: str, examples: int, send: Callable[[httpx.Request], int]) -> set[int]:
        """Sends that many requests for each of the path's methods. Returns the statuses."""
        statuses = set()
        for method in self._methods[path]:
            operation: Any = self._schema[path][method.upper()]
            wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

            @settings(
                max_examples=examples,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=[*HealthCheck],
            )
            @given(st.one_of(operation.as_strategy(), wrong))
            def send_case(case: Any) -> None:
                statuses.add(send(self._request(case)))

            send_case()
        return statuses

    def _request(self, case: Any) -> httpx.Request:
        for part in (getattr(case, name) for name in _PARTS):
            if isinstance(part, dict):
                self._change(part)
        arguments = case.as_transport_kwargs(base_url=self._base_url)
        prepared = requests.Request(
            **{name: arguments[name] for name in _FIELDS if name in arguments}
        ).prepare()
        body: Any = prepared.body
        return httpx.Request(
            str(prepared.method), str(prepared.url), headers=[*_texts(prepared)], content=body
        )


def _texts(request: requests.PreparedRequest) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in request.headers.items()]
