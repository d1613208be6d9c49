"""Starts and cancels runs of the refine loop for HTTP callers. Owns the job as a child process of
this API process, and the wait for its run to appear. Does not do the job itself (refine.py) or
cancel it from inside (refine/cancel.py).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from guard.errors import RunNotStarted
from guard.store.adapters import AdapterStore
from guard.store.audit import AuditStore
from guard.store.leases import Leases
from guard.store.runs import RunStore, StoredRun
from guard.tasks import spawn
from refine.cancel import cancel_run
from refine.schedule import LEASE

_POLL_S = 0.2
_FOLLOW_S = 1.0
_START_UP_S = 120.0
_log = logging.getLogger("vllm.setback")


class RunControl:
    """The runs of one database, for operators.

    command, environment: of a job for one run.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        runs: RunStore,
        adapters: AdapterStore,
        leases: Leases,
        audit: AuditStore,
    ) -> None:
        self._command = command
        self._environment = environment
        self._runs = runs
        self._adapters = adapters
        self._leases = leases
        self._audit = audit
        self._starting = asyncio.Lock()

    async def start(self, by: str) -> StoredRun:
        """Starts a run, or resumes one that a killed job left. Returns it at its beginning.

        Raises LeaseHeld while a job is running, RunNotStarted when the new job ended before it
        created a run.
        """
        async with self._starting:
            lease = await self._leases.held(LEASE)
            if lease is not None:
                raise lease
            started_at = datetime.now(UTC)
            job = await _Job.start(self._command, self._environment)
            run = await self._wait_for_run(job, started_at)
        await self._audit.add(by, "run.started", f"run {run.id}")
        return run

    async def _wait_for_run(self, job: "_Job", since: datetime) -> StoredRun:
        deadline = asyncio.get_running_loop().time() + _START_UP_S
        while True:
            # Read first: a job may begin and end its run between two polls.
            ended = job.ended
            newest = await self._runs.list(1)
            if newest and newest[0].updated_at >= since:
                return newest[0]
            if ended:
                raise RunNotStarted(f"The refine job ended early: {job.last_line}")
            if asyncio.get_running_loop().time() > deadline:
                job.end()
                raise RunNotStarted(f"The refine job had no run after {_START_UP_S:.0f} s")
            await asyncio.sleep(_POLL_S)

    async def cancel(self, number: int, by: str) -> StoredRun:
        """Cancels a run. A running job notices within a second or two; otherwise it ends at once.

        Raises RunUnknown, or RunOver when it has ended.
        """
        return await cancel_run(
            number, by, runs=self._runs, adapters=self._adapters, leases=self._leases
        )

    async def follow(self, run: StoredRun) -> AsyncIterator[StoredRun]:
        """Yields the run as it is, and again on every change until it has ended."""
        yield run
        while run.status == "running":
            await asyncio.sleep(_FOLLOW_S)
            # Shielded: a client that disconnects would otherwise cancel the query midway.
            current = await asyncio.shield(spawn(self._runs.get(run.id)))
            if current is not None and current != run:
                run = current
                yield run


class _Job:
    """A child process whose output goes to the log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.last_line = "it wrote nothing"
        self._reading = spawn(self._read())

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> "_Job":
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        return cls(process)

    @property
    def ended(self) -> bool:
        """Whether the process has ended and its output was read."""
        return self._reading.done()

    def end(self) -> None:
        """Terminates the process."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in _lines(self._process.stdout):
            text = line.decode(errors="replace").strip()
            if text:
                self.last_line = text
                _log.info("Refine job: %s", text)
        await self._process.wait()


async def _lines(output: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yields the lines, except those longer than the buffer, such as progress bars."""
    while True:
        try:
            line = await output.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line
