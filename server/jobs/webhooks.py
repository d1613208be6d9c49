"""Sends events to a URL, signed as the Standard Webhooks specification says. Owns the delivery: one
process at a time, in order, again until the receiver takes it. Never in a request's way. Does not
know what happened (guard/store/webhooks.py).
"""

import asyncio
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from guard.errors import GuardError, LeaseHeld, LeaseLost
from guard.store.leases import Leases, this_process
from guard.store.webhooks import EVENT_TYPES, Event, WebhookStore
from server.jobs.webhook_signature import signature
from server.settings import Settings, SettingsInvalid
from server.telemetry.metrics import webhook_sent

_LEASE = "webhooks"
_LEASE_S = 60.0
_POLL_S = 2.0
_LONGEST_PAUSE_S = 300.0
_AT_ONCE = 100
_TIMEOUT_S = 10.0
_log = logging.getLogger("vllm.setback")


@dataclass(frozen=True)
class Receiver:
    """Who gets which events. types: all others are left out. categories: of flags; empty for all.

    secret: `whsec_` and base64.
    """

    url: str
    secret: str
    types: Collection[str]
    categories: Collection[str] = ()

    def wants(self, event: Event) -> bool:
        """Whether the event is sent."""
        if event.type not in self.types:
            return False
        flagged = event.data.get("categories")
        return not self.categories or flagged is None or bool({*self.categories} & {*flagged})


def receiver_of(settings: Settings) -> Receiver | None:
    """Returns the receiver that the settings name. Raises SettingsInvalid without a secret."""
    if settings.webhook_url is None:
        return None
    if settings.webhook_secret is None:
        raise SettingsInvalid(
            "SETBACK_WEBHOOK_SECRET: webhooks are signed; make a secret with: "
            "echo whsec_$(openssl rand -base64 32)"
        )
    return Receiver(
        settings.webhook_url,
        settings.webhook_secret.get_secret_value(),
        settings.webhook_events,
        settings.webhook_categories,
    )


class Webhooks:
    """The events of one database for one receiver."""

    def __init__(
        self, receiver: Receiver, store: WebhookStore, leases: Leases, http: httpx.AsyncClient
    ) -> None:
        self._receiver = receiver
        self._store = store
        self._leases = leases
        self._http = http
        self._token: str | None = None

    async def run(self) -> None:
        """Delivers for ever, with pauses that grow while the receiver or the database fails."""
        failures = 0
        while True:
            try:
                await self.deliver()
            except LeaseHeld:
                failures = 0
            except (GuardError, httpx.HTTPError) as error:
                failures += 1
                if failures == 1:
                    _log.warning("Webhooks wait and are tried again: %s", error)
            else:
                failures = 0
            await asyncio.sleep(min(_POLL_S * 2**failures, _LONGEST_PAUSE_S))

    async def deliver(self) -> None:
        """Delivers what is pending. Raises LeaseHeld where another process does, StoreUnavailable,
        or httpx.HTTPError when the receiver does not take an event."""
        await self._lead()
        for kind in EVENT_TYPES:
            while events := await self._store.pending(kind, _AT_ONCE):
                for event in events:
                    if self._receiver.wants(event):
                        await self._send(event)
                    await self._store.delivered(event)
                await self._lead()

    async def _lead(self) -> None:
        """Takes or renews the lease: several processes and replicas share the database."""
        if self._token is None:
            token = await self._leases.acquire(_LEASE, this_process(), _LEASE_S)
            await self._store.begin()
            self._token = token
            return
        try:
            await self._leases.renew(_LEASE, self._token, _LEASE_S)
        except LeaseLost:
            self._token = None
            raise

    async def _send(self, event: Event) -> None:
        body = json.dumps(
            {"type": event.type, "timestamp": event.time.isoformat(), "data": event.data},
            ensure_ascii=False,
        ).encode()
        now = int(datetime.now(UTC).timestamp())
        headers = {
            "content-type": "application/json",
            "webhook-id": event.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._receiver.secret, event.id, now, body),
        }
        try:
            response = await self._http.post(
                self._receiver.url, content=body, headers=headers, timeout=_TIMEOUT_S
            )
            response.raise_for_status()
        except httpx.HTTPError:
            webhook_sent(event.type, succeeded=False)
            raise
        webhook_sent(event.type, succeeded=True)
