"""How our own routes refuse wrong parameters and bodies: as OpenAI's API does, naming the field.
Owns that translation, and what a row's number may be; what is wrong is FastAPI's finding.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import Field

from guard.store.tables import LARGEST_ID
from server.errors import BadRequest

Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]


class CheckedRoute(APIRoute):
    """A route whose validation errors become BadRequest. Use as an APIRouter's route_class."""

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
    """The first wrong field, and where it stands."""
    found = error.errors()[0]
    # The first step says where it stood: query, path or body; JSON that is none has no steps.
    steps = () if found["type"] == "json_invalid" else found["loc"][1:]
    where = ".".join(str(step) for step in steps) or str(found["loc"][0])
    problem = found["msg"].removeprefix("Value error, ")
    return BadRequest(f"{where}: {problem}.", where)
