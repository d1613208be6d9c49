"""Streams under guard: lets an answer out as far as a passed verdict covers it, while it is still
being written. Owns when a stream is judged and what is let out when; judges nothing (judge.py).

Decoding never waits for a critique: what arrives meanwhile is covered by the next one. So windows
grow by themselves when critiques are slow.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput

from guard.call import EngineRequest, Replacement, Ruling, StreamMode
from guard.draft import Choice, instead_of
from guard.judge import Judge
from guard.tasks import spawn
from guard.traces import span
from guard.vllm.session import taken_reply


@dataclass
class _Choice:
    """One choice of a stream: what was decoded, and what of it is not out yet.

    window: tokens that the next verdict waits for. judged: tokens that a verdict covers.
    shown, shown_tokens: characters and tokens that are out. finished_at: when its draft ended, of
    itself or for a flag. flagged: the first ruling that flagged it and let it go on. stopped:
    withheld, so that nothing more of it matters. closed: its last output is out.
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
        """Whether there is something that the next verdict should cover."""
        if self.stopped or self.closed:
            return False
        waiting = len(self.choice.token_ids) - self.judged
        return self.finished_at is not None or waiting >= self.window


class StreamRelease:
    """One streamed engine request, from its pieces (deltas) to what the client may see of them.

    n: how many choices were asked for.
    Usage: `async with aclosing(release.outputs(pieces)) as outputs: ...`
    """

    def __init__(
        self,
        judge: Judge,
        request: EngineRequest,
        *,
        mode: StreamMode,
        refusal: Replacement,
        filler: int,
        n: int,
    ) -> None:
        self._judge = judge
        self._request = request
        self._at_once = mode is StreamMode.ASYNC
        self._windows = judge.windows
        self._refusal = refusal
        self._filler = filler
        self._n = n
        self._choices: dict[int, _Choice] = {}
        self._last: RequestOutput | None = None
        self._out: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._decoding: asyncio.Task[None] | None = None

    async def outputs(
        self, pieces: AsyncGenerator[RequestOutput, None]
    ) -> AsyncGenerator[RequestOutput, None]:
        """What may be let out, as it may; closing it ends decoding and critiques.

        Raises what the engine raises, and CriticUnavailable or StoreUnavailable.
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
                ended = max(each.finished_at or 0.0 for each in self._choices.values())
                self._judge.observer.overhead(time.perf_counter() - ended)
            self._request.call.flowing = True
            yield output

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def told() -> None:
            try:
                await work
            except Exception as error:
                self._out.put_nowait(error)

        task = spawn(told())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _decode(self, pieces: AsyncGenerator[RequestOutput, None]) -> None:
        """Takes the engine's pieces; leaving early aborts the engine's request."""
        request = self._request
        with span("draft", request_id=request.request_id, adapter=request.adapter):
            async with aclosing(pieces):
                async for piece in pieces:
                    self._last = piece
                    read = taken_reply(piece)
                    for output in piece.outputs:
                        self._take(piece, output, read)

    def _take(
        self, piece: RequestOutput, output: CompletionOutput, read: dict[int, float] | None
    ) -> None:
        each = self._choices.setdefault(
            output.index, _Choice(Choice(output.index), self._windows.first)
        )
        if each.stopped:
            return
        each.choice.add(output)
        each.choice.read = read
        if output.finish_reason is not None:
            each.finished_at = time.perf_counter()
        each.held.append(_only(piece, output))
        if self._at_once and each.finished_at is None:
            self._release(each, 1)
        if each.due and not each.judging:
            each.judging = True
            self._start(self._rule(each))

    async def _rule(self, each: _Choice) -> None:
        """Judges a choice as far as it is decoded, again while more was decoded meanwhile."""
        while each.due:
            if each.finished_at is None:
                await self._rule_so_far(each)
            else:
                await self._rule_whole(each, each.finished_at)
        each.judging = False

    async def _rule_so_far(self, each: _Choice) -> None:
        seen, held = each.choice.so_far(), len(each.held)
        ruling = await self._judge.rule(self._request, seen, judged=each.judged)
        if ruling.withheld:
            await self._withhold(each, seen, ruling)
            return
        if ruling.decision.flagged and each.flagged is None:
            each.flagged = ruling
        each.judged = len(seen.token_ids)
        each.window = self._windows.after(each.window)
        self._release(each, held)

    async def _rule_whole(self, each: _Choice, finished_at: float) -> None:
        ruling = await self._judge.rule_whole(self._request, each.choice, judged=each.judged)
        self._judge.observer.critique(time.perf_counter() - finished_at)
        if ruling.withheld:
            await self._withhold(each, each.choice, ruling)
            return
        if each.flagged is not None and not ruling.decision.flagged:
            ruling = each.flagged
        await self._judge.settle(self._request, each.choice, ruling, released=each.shown)
        self._release(each, len(each.held))

    async def _withhold(self, each: _Choice, seen: Choice, ruling: Ruling) -> None:
        each.stopped = True
        each.finished_at = each.finished_at or time.perf_counter()
        if self._count(lambda each: each.stopped or each.finished_at is not None) == self._n:
            assert self._decoding is not None
            self._decoding.cancel()
        ruling = await self._judge.settle(self._request, seen, ruling, released=each.shown)
        each.closed = True
        hidden = len(each.choice.token_ids) - each.shown_tokens
        shown_ids = each.choice.token_ids[: each.shown_tokens]
        replacement = self._request.opened(ruling.revision or self._refusal, shown_ids)
        assert self._last is not None
        self._put(
            self._last,
            instead_of(each.choice, replacement, hidden, self._filler, shown=each.shown > 0),
        )

    def _release(self, each: _Choice, count: int) -> None:
        """Lets out the first `count` pieces of what is held of a choice, as one."""
        pieces, each.held = each.held[:count], each.held[count:]
        if not pieces:
            return
        merged = _only(pieces[0], copy(pieces[0].outputs[0]))
        for piece in pieces[1:]:
            merged.add(piece, aggregate=True)
        (output,) = merged.outputs
        each.shown += len(output.text)
        each.shown_tokens += len(output.token_ids)
        each.closed = output.finish_reason is not None
        self._put(merged, output)

    def _put(self, piece: RequestOutput, output: CompletionOutput) -> None:
        single = _only(piece, output)
        single.finished = self._count(lambda each: each.closed) == self._n
        self._out.put_nowait(single)

    def _count(self, condition: Callable[[_Choice], bool]) -> int:
        return sum(map(condition, self._choices.values()))


def _only(piece: RequestOutput, output: CompletionOutput) -> RequestOutput:
    """The piece with one of its choices."""
    single = copy(piece)
    single.outputs = [output]
    return single
