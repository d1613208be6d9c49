"""Follows the policy file while the server runs. Owns when it is read again and that a wrong file
changes nothing. Does not read it (guard/policy_file.py).
"""

import asyncio
import logging
from pathlib import Path

from guard.critic import Critic
from guard.errors import GuardError
from guard.policies import Policies, PolicySet
from guard.policy_file import load_policies
from guard.store.policies import PolicyStore
from server.telemetry.metrics import policy_reloaded

_POLL_S = 2.0
_log = logging.getLogger("vllm.setback")


class PolicyFile:
    """The policy file of a running server."""

    def __init__(self, path: Path, policies: Policies, critic: Critic, store: PolicyStore) -> None:
        self._path = path
        self._policies = policies
        self._critic = critic
        self._store = store
        self._content = _content(path)

    async def watch(self) -> None:
        """Looks for changes for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Puts the file in force if it changed. A wrong one is logged, and the policies stay."""
        content = _content(self._path)
        if content == self._content:
            return
        self._content = content
        try:
            policies = load_policies(self._path)
            self._critic.prepare(policies.criteria)
            await self._store.add(policies)
        except GuardError as error:
            policy_reloaded(succeeded=False)
            _log.error("The policy file is not put in force: %s", error)
            return
        self._policies.current = policies
        policy_reloaded(succeeded=True)
        _log.info("Policies in force: %s", described(policies))


def described(policies: PolicySet) -> str:
    """Returns the names and hashes of policies."""
    return ", ".join(f"{policy.name} ({policy.hash})" for policy in policies)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
