"""Sends a benchmark set through a running server. Owns which rows are still to be sent, how many at
once, and what becomes of failures; the requests are public_api.py's, the figures scores.py's.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refine.benchmarks.kept import KeptVerdict, KeptVerdicts
from refine.benchmarks.public_api import Identity, PublicApi, RowFailed, ServerAddress
from refine.benchmarks.rows import BenchmarkRow, BenchmarkSet
from refine.errors import ServerChanged


@dataclass(frozen=True)
class BenchmarkRun:
    """What one server said of one set.

    judged: rows with their verdicts, in the order of the set. failures: how many rows have no
    verdict, by reason. drawn: how many rows were to be judged. manner: how requests were sent.
    """

    address: ServerAddress
    identity: Identity
    benchmark: BenchmarkSet
    drawn: int
    judged: tuple[tuple[BenchmarkRow, KeptVerdict], ...]
    failures: Mapping[str, int]
    manner: str

    @property
    def failed(self) -> int:
        """How many rows have no verdict."""
        return sum(self.failures.values())


@dataclass(frozen=True)
class Plan:
    """How a set is sent. work_dir: keeps verdicts. limit: most rows, all if None."""

    work_dir: Path
    concurrency: int = 16
    limit: int | None = None


Advance = Callable[[int], object]
"""Receives how many more rows are done."""


async def run_benchmark(
    api: PublicApi, benchmark: BenchmarkSet, plan: Plan, advance: Advance
) -> BenchmarkRun:
    """The server's verdicts on the set: those that are kept already, and the missing ones.

    Raises ServerUnavailable, and ServerChanged if something else serves before the end; what came
    from one identity until then is kept.
    """
    identity = await api.identity()
    places = benchmark.sample(plan.limit)
    failures: Mapping[str, int] = {}
    with KeptVerdicts.open(plan.work_dir, api.address.url, identity, benchmark, api.manner) as kept:
        missing = [place for place in places if place not in kept.verdicts]
        advance(len(places) - len(missing))
        if missing:
            try:
                rows = {place: benchmark.rows[place] for place in missing}
                failures = await _fill(api, rows, kept, plan.concurrency, advance)
                await api.identity()
            except ServerChanged as change:
                if not change.adapter_only:
                    kept.drop_session()
                raise
        judged = tuple(
            (benchmark.rows[place], kept.verdicts[place])
            for place in places
            if place in kept.verdicts
        )
    return BenchmarkRun(
        api.address, identity, benchmark, len(places), judged, dict(failures), api.manner
    )


async def _fill(
    api: PublicApi,
    rows: Mapping[int, BenchmarkRow],
    kept: KeptVerdicts,
    concurrency: int,
    advance: Advance,
) -> Mapping[str, int]:
    """Sends the rows, `concurrency` of them at once, and keeps the verdicts as they come.

    Returns the failures, by reason.
    """
    failures: Counter[str] = Counter()
    began = time.perf_counter()
    waiting = iter(rows.items())

    async def work() -> None:
        for place, row in waiting:
            try:
                verdict = await api.verdict(row)
            except RowFailed as failure:
                failures[str(failure)] += 1
            else:
                kept.add(place, verdict, time.perf_counter() - began)
            advance(1)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(rows))):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        # One is enough: the others were cancelled, or failed of the same.
        raise failed.exceptions[0] from None
    return failures
