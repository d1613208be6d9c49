"""Streams under guard. An answer is released as far as a passed verdict covers it, while it is
still being generated. Owns when a stream is judged and when its text is released. Does not judge
(judge.py).

Decoding never waits for a critique: the next critique covers what arrived in the meantime. So the
windows grow by themselves when critiques are slow.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput

from guard.call import EngineRequest, Ruling, StreamMode
from guard.draft import Choice, replacement_output
from guard.judge import Judge
from guard.masking import Masking
from guard.refusals import Refusals
from guard.tasks import spawn
from guard.traces import span
from guard.vllm.session import take_label_logprobs


@dataclass
class _StreamedChoice:
    """One choice of a stream: what was decoded, and which outputs are held back.

    window: new tokens that the next verdict waits for. judged: tokens that a verdict covers.
    shown, shown_tokens: characters and tokens that were released. finished_at: when the draft ended
    or was flagged. flagged: the first ruling that flagged it without withholding it. stopped: it is
    withheld, and later outputs are dropped. closed: its last output was released.
    """

    choice: Choice
    window: int
    held: list[RequestOutput] = field(default_factory=list)
    judged: int = 0
    shown: int = 0
    shown_tokens: int = 0
    finished_at: float | None = None
    flagged: Ruling | None = None
    judging: bool = False
    stopped: bool = False
    closed: bool = False

    @property
    def due(self) -> bool:
        """Whether there is enough new text for a verdict."""
        if self.stopped or self.closed:
            return False
        waiting = len(self.choice.token_ids) - self.judged
        return self.finished_at is not None or waiting >= self.window


class StreamRelease:
    """Releases the outputs (deltas) of one streamed engine request.

    n: the number of choices.
    Usage: `async with aclosing(release.outputs(pieces)) as outputs: ...`
    """

    def __init__(
        self,
        judge: Judge,
        request: EngineRequest,
        *,
        mode: StreamMode,
        refusals: Refusals,
        masking: Masking,
        filler: int,
        n: int,
    ) -> None:
        self._judge = judge
        self._request = request
        self._policy = judge.rulings.policy_of(request)
        self._release_immediately = mode is StreamMode.ASYNC
        self._windows = judge.subjects.windows
        self._refusals = refusals
        self._masking = masking
        self._filler = filler
        self._n = n
        self._choices: dict[int, _StreamedChoice] = {}
        self._last: RequestOutput | None = None
        self._out: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._decoding: asyncio.Task[None] | None = None

    async def outputs(
        self, pieces: AsyncGenerator[RequestOutput, None]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields outputs once they may be released. Closing it ends decoding and critiques.

        Raises what the engine raises, CriticUnavailable or StoreUnavailable.
        """
        self._decoding = self._start(self._decode(pieces))
        try:
            async for output in self._released():
                yield output
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _released(self) -> AsyncIterator[RequestOutput]:
        finished = False
        while not finished:
            output = await self._out.get()
            if isinstance(output, Exception):
                raise output
            finished = output.finished
            if finished:
                ended = max(streamed.finished_at or 0.0 for streamed in self._choices.values())
                self._judge.rulings.observer.overhead(time.perf_counter() - ended)
            call = self._request.call
            call.streaming_started = True
            call.replacing |= any(
                one.index in call.replaced and one.finish_reason for one in output.outputs
            )
            yield output

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._out.put_nowait(error)

        task = spawn(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _decode(self, pieces: AsyncGenerator[RequestOutput, None]) -> None:
        """Adds the engine's outputs; cancelling it aborts the engine request."""
        request = self._request
        with span("draft", request_id=request.request_id, adapter=request.adapter):
            async with aclosing(pieces):
                async for piece in pieces:
                    self._last = piece
                    label_logprobs = take_label_logprobs(piece)
                    for output in piece.outputs:
                        self._add_output(piece, output, label_logprobs)

    def _add_output(
        self,
        piece: RequestOutput,
        output: CompletionOutput,
        label_logprobs: dict[int, float] | None,
    ) -> None:
        streamed = self._choices.setdefault(
            output.index, _StreamedChoice(Choice(output.index), self._windows.first)
        )
        if streamed.stopped:
            return
        streamed.choice.add(output)
        streamed.choice.label_logprobs = label_logprobs
        if output.finish_reason is not None:
            streamed.finished_at = time.perf_counter()
        streamed.held.append(_with_single_output(piece, output))
        if self._release_immediately and streamed.finished_at is None:
            self._release(streamed, 1)
        if streamed.due and not streamed.judging:
            streamed.judging = True
            self._start(self._rule(streamed))

    async def _rule(self, streamed: _StreamedChoice) -> None:
        """Judges a choice as far as it is decoded, and again if more was decoded meanwhile."""
        while streamed.due:
            if streamed.finished_at is None:
                await self._rule_prefix(streamed)
            else:
                await self._rule_whole(streamed, streamed.finished_at)
        streamed.judging = False

    async def _rule_prefix(self, streamed: _StreamedChoice) -> None:
        snapshot, held = streamed.choice.snapshot(), len(streamed.held)
        ruling = await self._judge.rule(
            self._request, snapshot, judged=streamed.judged, ended=False
        )
        if ruling.withheld:
            await self._withhold(streamed, snapshot, ruling)
            return
        if ruling.decision.flagged and streamed.flagged is None:
            streamed.flagged = ruling
        streamed.judged = len(snapshot.token_ids)
        streamed.window = self._windows.after(streamed.window)
        self._release(streamed, self._certain(streamed.held[:held], snapshot.text))

    def _certain(self, outputs: Sequence[RequestOutput], answer: str) -> int:
        """Returns how many of the outputs, which a verdict covers, are released: not the last ones,
        in which something that the policy looks for may begin. answer: all text so far."""
        count, open_end = len(outputs), self._policy.undecided(answer)
        while count and open_end > 0:
            count -= 1
            open_end -= len(outputs[count].outputs[0].text)
        return count

    async def _rule_whole(self, streamed: _StreamedChoice, finished_at: float) -> None:
        ruling = await self._judge.rule_whole(
            self._request, streamed.choice, judged=streamed.judged
        )
        self._judge.rulings.observer.critique(time.perf_counter() - finished_at)
        if ruling.withheld:
            await self._withhold(streamed, streamed.choice, ruling)
            return
        if streamed.flagged is not None and not ruling.decision.flagged:
            ruling = streamed.flagged
        await self._judge.settle(self._request, streamed.choice, ruling, released=streamed.shown)
        self._release(streamed, len(streamed.held))

    async def _withhold(self, streamed: _StreamedChoice, choice: Choice, ruling: Ruling) -> None:
        streamed.stopped = True
        streamed.finished_at = streamed.finished_at or time.perf_counter()
        if self._count(lambda other: other.stopped or other.finished_at is not None) == self._n:
            assert self._decoding is not None
            self._decoding.cancel()
        ruling = await self._judge.settle(self._request, choice, ruling, released=streamed.shown)
        streamed.closed = True
        hidden_tokens = len(streamed.choice.token_ids) - streamed.shown_tokens
        shown_ids = streamed.choice.token_ids[: streamed.shown_tokens]
        replacement = self._request.replaced_by(
            self._refusals.instead_of(ruling, self._policy), choice.index, shown_ids
        )
        assert self._last is not None
        self._put(
            self._last,
            replacement_output(
                streamed.choice,
                replacement,
                hidden_tokens,
                self._filler,
                partly_shown=streamed.shown > 0,
            ),
        )

    def _release(self, streamed: _StreamedChoice, count: int) -> None:
        """Releases the first `count` held outputs of a choice, merged into one."""
        pieces, streamed.held = streamed.held[:count], streamed.held[count:]
        if not pieces:
            return
        merged = _with_single_output(pieces[0], copy(pieces[0].outputs[0]))
        for piece in pieces[1:]:
            merged.add(piece, aggregate=True)
        (output,) = merged.outputs
        masked = self._masking.part(output, streamed.choice, self._policy, start=streamed.shown)
        streamed.shown += len(output.text)
        streamed.shown_tokens += len(output.token_ids)
        streamed.closed = output.finish_reason is not None
        self._put(merged, masked)

    def _put(self, piece: RequestOutput, output: CompletionOutput) -> None:
        single = _with_single_output(piece, output)
        single.finished = self._count(lambda streamed: streamed.closed) == self._n
        self._out.put_nowait(single)

    def _count(self, condition: Callable[[_StreamedChoice], bool]) -> int:
        return sum(map(condition, self._choices.values()))


def _with_single_output(piece: RequestOutput, output: CompletionOutput) -> RequestOutput:
    """Returns a copy of the piece with that output alone."""
    single = copy(piece)
    single.outputs = [output]
    return single
