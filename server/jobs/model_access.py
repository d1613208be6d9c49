"""How commands reach the model of a running server. Owns the token and the API key that they send.
Does not define the requests to the model (refine/served.py).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from guard.store.flags import FlagStore
from refine.served import ServedModel
from server.settings import Settings


@asynccontextmanager
async def served_model(settings: Settings) -> AsyncIterator[ServedModel]:
    """Yields the served model. Raises StoreUnavailable when the database has no token."""
    store = FlagStore(settings.database_url)
    try:
        await store.check()
        token = await store.refine_token()
    finally:
        await store.close()
    options = settings.refine
    key = options.api_key.get_secret_value() if options.api_key else None
    async with ServedModel(options.server_url, token, key) as model:
        yield model
