"""/openapi.json describes our own routes: parameters, bodies and errors."""

from collections.abc import Iterator
from typing import Any

import pytest

from guard.verdict import CATEGORIES
from server.routes.flags import FlagFilter, FlagList
from server.routes.open import REVIEW
from tests.server.face import Face


@pytest.fixture
async def document(face: Face) -> dict[str, Any]:
    async with face.client() as client:
        schema: dict[str, Any] = (await client.get("/openapi.json")).json()
    return schema


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in (*REVIEW, "/v1/moderations"):
        yield from document["paths"][path].values()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (reference for name, reference in value.items() if name == "$ref")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_route_tells_of_its_errors(document: dict[str, Any]) -> None:
    for operation in operations(document):
        assert {"200", "4XX", "5XX"} == operation["responses"].keys()
        assert operation["description"]
    error = document["components"]["schemas"]["ErrorFields"]
    assert error["required"] == ["message", "type", "param", "code"]


def test_the_document_lists_the_filters_values_that_there_always_are(
    document: dict[str, Any],
) -> None:
    for path, kind in (("/v1/guard/flags", FlagList), ("/v1/guard/flags/export", FlagFilter)):
        parameters = {
            parameter["name"]: parameter
            for parameter in document["paths"][path]["get"]["parameters"]
        }
        assert parameters.keys() == kind.model_fields.keys()
        category, _ = parameters["category"]["schema"]["anyOf"]
        assert category["examples"] == [*CATEGORIES]


def test_the_document_refers_to_what_is_in_it(document: dict[str, Any]) -> None:
    for reference in references(document):
        here: Any = document
        for step in reference.removeprefix("#/").split("/"):
            here = here[step.replace("~1", "/").replace("~0", "~")]
        assert isinstance(here, dict)


def test_pages_are_not_in_openapi(document: dict[str, Any]) -> None:
    assert not [path for path in document["paths"] if path.startswith("/console")]
