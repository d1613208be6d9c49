"""How a server's policies are exchanged while it runs. Owns the loaded text, and the watch for
another one. A wrong one changes nothing. Does not say where it comes from (policies_in_force.py) or
parse it (guard/policy_file.py).
"""

import asyncio
import logging
from pathlib import Path

from guard.critic import Critic
from guard.errors import GuardError
from guard.policies import Policies, PolicySet
from guard.policy_file import parse_policies
from guard.store.policies import PolicyStore
from server.launch.policies_in_force import policy_text
from server.telemetry.metrics import policy_reloaded

_POLL_S = 2.0
_log = logging.getLogger("vllm.setback")


class PolicySource:
    """The source of a running server's policies.

    text: the TOML that is in force.
    """

    def __init__(self, path: Path | None, store: PolicyStore) -> None:
        self._path = path
        self._store = store
        self._refused: str | None = None
        self._problem = ""
        self.text = ""

    @property
    def editable(self) -> bool:
        """Whether policies can be activated: without a file."""
        return self._path is None

    async def load(self) -> PolicySet:
        """Returns the policies to start with. Raises PolicyInvalid or StoreUnavailable."""
        text = await self._read()
        policies = self.parse(text)
        await self._store.add(policies)
        self.text = text
        return policies

    def parse(self, text: str) -> PolicySet:
        """Returns the policies in a text. Raises PolicyInvalid."""
        return parse_policies(text, str(self._path or "policy"))

    async def activate(self, text: str, by: str) -> None:
        """Puts a text in force, for all servers of the database. Raises PolicyInvalid or
        StoreUnavailable."""
        await asyncio.to_thread(self.parse, text)
        await self._store.activate(text, by=by)

    async def watch(self, policies: Policies, critic: Critic) -> None:
        """Looks for changes for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            await self.refresh(policies, critic)

    async def refresh(self, policies: Policies, critic: Critic) -> None:
        """Exchanges the policies if their source changed. What is wrong is logged once."""
        try:
            text = await self._read()
            if text in (self.text, self._refused):
                return
            await self._exchange(text, policies, critic)
        except GuardError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("The policies stay as they were: %s", error)
        else:
            self._problem = ""

    async def _exchange(self, text: str, policies: Policies, critic: Critic) -> None:
        try:
            # In a thread: the model that identifies languages takes a second to load.
            loaded = await asyncio.to_thread(self.parse, text)
            critic.prepare(loaded.criteria)
        except GuardError:
            self._refused = text
            policy_reloaded(succeeded=False)
            raise
        await self._store.add(loaded)
        policies.current, self.text, self._refused = loaded, text, None
        policy_reloaded(succeeded=True)
        names = ", ".join(f"{policy.name} ({policy.hash})" for policy in loaded)
        _log.info("Policies in force: %s", names)

    async def _read(self) -> str:
        return await policy_text(self._path, self._store)
