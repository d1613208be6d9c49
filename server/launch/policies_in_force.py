"""Where policies come from: a file if one is set, or else what was activated in the database, or
the default. Owns the choice. Does not parse them (guard/policy_file.py) or follow changes
(policy_reload.py).
"""

import asyncio
from pathlib import Path

from sqlalchemy import URL

from guard.policies import PolicySet
from guard.policy_file import default_text, parse_policies, read_text
from guard.store.policies import PolicyStore


async def policies_in_force(path: Path | None, database: URL) -> tuple[str, PolicySet]:
    """Returns the text of the policies in force and what it says, for a process that does not
    follow them. Raises PolicyInvalid or StoreUnavailable."""
    store = PolicyStore(database)
    try:
        text = await policy_text(path, store)
    finally:
        await store.close()
    return text, await asyncio.to_thread(parse_policies, text, str(path or "policy"))


async def policy_text(path: Path | None, store: PolicyStore) -> str:
    """Returns the text of the policies in force: that of the file if one is set, or else what was
    activated in the database, or the default. Raises PolicyInvalid or StoreUnavailable."""
    if path is not None:
        return await asyncio.to_thread(read_text, path)
    newest = await store.newest()
    return newest.text if newest else default_text()
