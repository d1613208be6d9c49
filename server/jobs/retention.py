"""Deletes flags after retention_days. Owns the schedule. Does not delete rows itself
(guard/store/review.py)."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from guard.errors import StoreUnavailable
from guard.store.review import Filter, ReviewStore

_EVERY_S = 3600.0
_BY = "retention_days"
_log = logging.getLogger("vllm.setback")


async def delete_expired(days: int, reviews: ReviewStore, every_s: float = _EVERY_S) -> None:
    """Deletes older flags now and every hour, for ever. Several processes may do so at once."""
    while True:
        try:
            until = datetime.now(UTC) - timedelta(days=days)
            deleted = await reviews.delete(Filter(until=until), by=_BY)
        except StoreUnavailable as error:
            _log.warning("Old flags could not be deleted; trying again later: %s", error)
        else:
            if deleted:
                _log.info("Deleted %d flags older than %d days", len(deleted), days)
        await asyncio.sleep(every_s)
