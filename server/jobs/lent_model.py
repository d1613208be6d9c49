"""How a command reaches the model of the running server that the settings name. Owns the token and
the key that it shows; what is asked of the model is refine/served.py's.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from guard.store.flags import FlagStore
from refine.served import ServedModel
from server.settings import Settings


@asynccontextmanager
async def lent_model(settings: Settings) -> AsyncIterator[ServedModel]:
    """The model for the block. Raises StoreUnavailable when the database has no token to show."""
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
