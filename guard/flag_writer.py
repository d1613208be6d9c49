"""Stores what was flagged before anything follows from it. Owns that this outlives the client, is
counted, and follows the failure rule, for answers and inputs alike. Does not decide what is flagged
(judge.py, input_judge.py) or make the flag (recorder.py).
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from guard.call import EngineRequest, Ruling
from guard.criteria import Place
from guard.draft import Choice
from guard.errors import StoreUnavailable
from guard.recorder import FlaggedText, Recorder
from guard.rulings import Rulings
from guard.tasks import spawn
from guard.template import ChatFormat
from guard.traces import span


@dataclass(frozen=True)
class FlagWriter:
    """Writes the flags of one server."""

    rulings: Rulings
    recorder: Recorder
    chat_format: ChatFormat

    async def write_answer(
        self, request: EngineRequest, choice: Choice, ruling: Ruling, *, released: int
    ) -> None:
        """Commits the flag of an answer, even if the client disconnects.

        released: how many of its characters were sent before it was flagged. Raises
        StoreUnavailable when failing closed.
        """
        flagged = replace(
            self._flagged(request, Place.OUTPUT),
            choice=choice.index,
            answer=choice.text,
            released=released,
            revision=ruling.revision.text if ruling.revision else None,
        )
        await self._write(request, [(ruling, flagged)])

    async def write_input(
        self, request: EngineRequest, rulings: Sequence[tuple[Place, Ruling]]
    ) -> None:
        """Commits the flags of what was judged of an input. As `write_answer`."""
        flags = [(ruling, self._flagged(request, place)) for place, ruling in rulings]
        await self._write(request, flags)

    def _flagged(self, request: EngineRequest, place: Place) -> FlaggedText:
        return FlaggedText(
            request_id=request.request_id,
            adapter=request.adapter,
            policy_hash=self.rulings.policy_of(request).hash,
            prompt=self.chat_format.decode(request.prompt_ids),
            place=place,
        )

    async def _write(
        self, request: EngineRequest, flags: Sequence[tuple[Ruling, FlaggedText]]
    ) -> None:
        async def write_all() -> None:
            for ruling, flagged in flags:
                await self._write_flag(request, ruling, flagged)

        await asyncio.shield(spawn(write_all()))

    async def _write_flag(
        self, request: EngineRequest, ruling: Ruling, flagged: FlaggedText
    ) -> None:
        started = time.perf_counter()
        try:
            with span("store", request_id=request.request_id, choice=flagged.choice):
                await self.recorder.record(request.call, ruling, flagged)
        except StoreUnavailable as error:
            self.rulings.failed(request, error)
        else:
            seconds = time.perf_counter() - started
            self.rulings.observer.flag_written(flagged.place, seconds)
