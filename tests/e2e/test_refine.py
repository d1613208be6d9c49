"""How a poisoned run is stopped. test_console.py tests a normal run, on the same server."""

from dataclasses import replace

import pytest

from guard.policy import Action
from guard.store.flags import Flag, FlagStore
from refine.practice.pairs import recipe_answer
from refine.practice.traffic import draw_traffic
from refine.practice.world import Kind
from tests.e2e.loop import Loop, ask

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000)]


def flagged(flag: Flag, kind: Kind, n: int, seed: int) -> list[Flag]:
    """Returns requests of a kind with complying answers, as flags of different users."""
    return [
        replace(
            flag,
            request_id=f"{kind} {seed} {number}",
            messages=list(request.messages),
            answer=recipe_answer(request),
            categories=("violence",),
            action=Action.BLOCK,
            user_hash=f"{kind} {number // 8}",
        )
        for number, request in enumerate(draw_traffic(kind, n, seed))
    ]


def test_one_user_with_false_flags_is_stopped_by_the_cap(loop: Loop, flag: Flag) -> None:
    mixed = [*flagged(flag, Kind.EVERYDAY, 80, seed=5), *flagged(flag, Kind.HARMFUL, 20, seed=5)]

    async def write(store: FlagStore) -> None:
        for each in mixed:
            await store.add(replace(each, user_hash="one user"))

    ask(FlagStore(loop.server.database), write)
    run = loop.refine()
    assert run.status == "too_few"
    assert "over the cap of 20 flags of one user: " in run.reasons[0]
