"""How our own routes report wrong parameters and bodies: in OpenAI's format, naming the field. Owns
this translation of FastAPI's validation errors, and the type of an id in a path.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import Field

from guard.store.base import LARGEST_ID
from server.errors import BadRequest

Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]


class CheckedRoute(APIRoute):
    """A route whose validation errors become BadRequest. Use it as an APIRouter's route_class."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As APIRoute.get_route_handler."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise bad_request(error) from error

        return checked


def bad_request(error: RequestValidationError) -> BadRequest:
    """Returns the first wrong field and its path."""
    first = error.errors()[0]
    # The first step is the place: query, path or body. Invalid JSON has a position, not a path.
    steps = () if first["type"] == "json_invalid" else first["loc"][1:]
    field = ".".join(str(step) for step in steps) or str(first["loc"][0])
    problem = first["msg"].removeprefix("Value error, ")
    return BadRequest(f"{field}: {problem}.", field)
