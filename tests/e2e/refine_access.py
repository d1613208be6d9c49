"""The refine job's access to a server, for tests that need its routes without a job."""

import httpx

from guard.store.flags import FlagStore
from server.routes.model_access import TOKEN_HEADER
from tests.e2e.conftest import Server


async def refine_headers(server: Server) -> dict[str, str]:
    """Returns the header with the refine job's token."""
    store = FlagStore(server.database)
    token = await store.refine_token()
    await store.close()
    return {TOKEN_HEADER: token}


async def model_revision(server: Server) -> str:
    """Returns the revision of the served weights, which an adapter must name."""
    headers = await refine_headers(server)
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=120) as http:
        response = await http.get("/v1/guard/refine/model")
    return str(response.raise_for_status().json()["model_revision"])
