"""Sends a benchmark set through a running server. Owns which rows still need a verdict, the
concurrency and the handling of failures. Does not define requests (public_api.py) or figures
(scores.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refine.benchmarks.public_api import Identity, PublicApi, RowFailed, ServerAddress
from refine.benchmarks.rows import BenchmarkRow, BenchmarkSet
from refine.benchmarks.verdict_store import StoredVerdict, VerdictStore
from refine.errors import ServerChanged


@dataclass(frozen=True)
class BenchmarkRun:
    """One server's verdicts on one set.

    judged: rows with their verdicts, in the order of the set. failures: the number of rows without
    a verdict, by reason. drawn: the number of rows to judge. manner: how requests were sent.
    """

    address: ServerAddress
    identity: Identity
    benchmark: BenchmarkSet
    drawn: int
    judged: tuple[tuple[BenchmarkRow, StoredVerdict], ...]
    failures: Mapping[str, int]
    manner: str

    @property
    def failed(self) -> int:
        """The number of rows without a verdict."""
        return sum(self.failures.values())


@dataclass(frozen=True)
class Plan:
    """How a set is sent. work_dir: stores verdicts. limit: the most rows; None for all."""

    work_dir: Path
    concurrency: int = 16
    limit: int | None = None


Advance = Callable[[int], object]
"""Called with the number of rows that are newly done."""


async def run_benchmark(
    api: PublicApi, benchmark: BenchmarkSet, plan: Plan, advance: Advance
) -> BenchmarkRun:
    """Returns the server's verdicts on the set: stored ones, and new ones for the other rows.

    Raises ServerUnavailable, and ServerChanged if the model, policy or adapter changed; verdicts
    from before the change are kept.
    """
    identity = await api.identity()
    indices = benchmark.sample(plan.limit)
    failures: Mapping[str, int] = {}
    with VerdictStore.open(
        plan.work_dir, api.address.url, identity, benchmark, api.manner
    ) as store:
        missing = [index for index in indices if index not in store.verdicts]
        advance(len(indices) - len(missing))
        if missing:
            try:
                rows = {index: benchmark.rows[index] for index in missing}
                failures = await _send_rows(api, rows, store, plan.concurrency, advance)
                await api.identity()
            except ServerChanged as error:
                if not error.adapter_only:
                    store.drop_session()
                raise
        judged = tuple(
            (benchmark.rows[index], store.verdicts[index])
            for index in indices
            if index in store.verdicts
        )
    return BenchmarkRun(
        api.address, identity, benchmark, len(indices), judged, dict(failures), api.manner
    )


async def _send_rows(
    api: PublicApi,
    rows: Mapping[int, BenchmarkRow],
    store: VerdictStore,
    concurrency: int,
    advance: Advance,
) -> Mapping[str, int]:
    """Sends the rows, `concurrency` at a time, and stores the verdicts as they arrive.

    Returns the failures by reason.
    """
    failures: Counter[str] = Counter()
    started_at = time.perf_counter()
    remaining = iter(rows.items())

    async def work() -> None:
        for index, row in remaining:
            try:
                verdict = await api.verdict(row)
            except RowFailed as error:
                failures[str(error)] += 1
            else:
                store.add(index, verdict, time.perf_counter() - started_at)
            advance(1)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(rows))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        # The first is enough: the others were cancelled, or have the same cause.
        raise errors.exceptions[0] from None
    return failures
