"""The runs' records, the flags still to be used, and lineage."""

from collections.abc import AsyncIterator
from datetime import UTC

import pytest
from sqlalchemy import URL

from guard.errors import StoreUnavailable
from guard.store.adapters import AdapterStore
from guard.store.flags import Flag, FlagStore
from guard.store.review import Label, ReviewStore
from guard.store.runs import Lineage, RunStore, StoredRun, Use


@pytest.fixture
async def runs(database: URL) -> AsyncIterator[RunStore]:
    store = RunStore(database)
    yield store
    await store.close()


async def begin(runs: RunStore, parent: int | None = None) -> StoredRun:
    return await runs.start(
        model="practice", model_revision="rev", parent=parent, seed=3, options={"rank": 16}
    )


async def test_a_run_from_start_to_promotion(runs: RunStore) -> None:
    run = await begin(runs)
    assert (run.status, run.stage, run.parent, run.seed) == ("running", "collect", None, 3)
    assert run.options == {"rank": 16}
    assert (run.measures, run.reasons, run.finished_at) == (None, (), None)
    await runs.set_stage(run.id, "analyse", counts={"learn": 30})
    await runs.set_stage(run.id, "train", counts={"examples": 900}, dataset_sha256="ab")
    await runs.set_stage(run.id, "gate")
    await runs.finish(
        run.id, "promoted", measures={"harm": float("nan"), "help": 0.9}, reasons=["better: yes"]
    )
    ended = await runs.get(run.id)
    assert ended is not None
    assert (ended.status, ended.stage, ended.dataset_sha256) == ("promoted", "gate", "ab")
    assert ended.counts == {"learn": 30, "examples": 900}
    assert ended.measures == {"harm": "nan", "help": 0.9}
    assert ended.reasons == ("better: yes",)
    assert ended.finished_at is not None
    assert ended.finished_at.tzinfo is UTC
    assert ended.updated_at >= run.updated_at


async def test_a_failed_run_says_why(runs: RunStore) -> None:
    run = await begin(runs)
    await runs.finish(run.id, "failed", error="no\0 room")
    failed = await runs.get(run.id)
    assert failed is not None
    assert failed.error == "no\ufffd room"
    assert failed.measures is None


async def test_only_the_newest_running_run_is_unfinished(runs: RunStore) -> None:
    assert await runs.unfinished() is None
    first, second = [await begin(runs) for _ in range(2)]
    assert await runs.unfinished() == second
    await runs.finish(second.id, "too_few")
    assert await runs.unfinished() == first
    await runs.finish(first.id, "rejected")
    assert await runs.unfinished() is None
    assert [run.id for run in await runs.list(limit=5)] == [second.id, first.id]
    assert [run.id for run in await runs.list(limit=1)] == [second.id]


async def test_a_run_that_is_gone_is_a_clear_error(runs: RunStore) -> None:
    assert await runs.get(9) is None
    with pytest.raises(StoreUnavailable, match="no run 9"):
        await runs.set_stage(9, "train")


async def test_setting_a_runs_flags_again_replaces_them(
    runs: RunStore, store: FlagStore, flag: Flag
) -> None:
    run = await begin(runs)
    one, two, three = [await store.add(flag) for _ in range(3)]
    await runs.set_flags(run.id, {one: "train", two: "held_out"})
    await runs.set_flags(run.id, {two: "train", three: "held_out"})
    assert await runs.flags_of(run.id) == {two: "train", three: "held_out"}


async def test_only_promoted_runs_use_flags_up(
    runs: RunStore, store: FlagStore, flag: Flag
) -> None:
    one, two, three = [await store.add(flag) for _ in range(3)]
    run = await begin(runs)
    uses: dict[int, Use] = {one: "train", two: "held_out"}
    await runs.set_flags(run.id, uses)
    assert [left.id for left in await store.unlearned(limit=9)] == [one, two, three]
    await runs.finish(run.id, "rejected")
    assert [left.id for left in await store.unlearned(limit=9)] == [one, two, three]
    assert await store.held_out() == []

    again = await begin(runs)
    await runs.set_flags(again.id, uses)
    await runs.finish(again.id, "promoted")
    assert [left.id for left in await store.unlearned(limit=9)] == [three]
    assert [left.id for left in await store.held_out()] == [two]


@pytest.mark.parametrize(
    ("label", "again"),
    [
        (Label(review="dismissed"), True),
        (Label(review="confirmed", answer="No."), True),
        (Label(review="confirmed", category="hate"), True),
        (Label(review="confirmed", note="indeed"), False),
    ],
    ids=["dismissed", "corrected answer", "corrected category", "confirmed"],
)
async def test_a_flag_found_wrong_after_it_was_taken_is_taken_again_once(
    runs: RunStore, store: FlagStore, reviews: ReviewStore, flag: Flag, label: Label, again: bool
) -> None:
    one, two = [await store.add(flag) for _ in range(2)]
    uses: dict[int, Use] = {one: "train", two: "held_out"}
    for _ in range(2):
        run = await begin(runs)
        await runs.set_flags(run.id, uses)
        await runs.finish(run.id, "promoted")
        assert await store.unlearned(limit=9) == []
        assert [left.id for left in await store.held_out()] == [two]
        if run.id == 1:
            await reviews.label([one, two], label, "ada")
            assert bool(await store.unlearned(limit=9)) is again
            assert bool(await store.held_out()) is not again


async def test_unlearned_flags_come_oldest_first_with_their_review(
    store: FlagStore, reviews: ReviewStore, flag: Flag
) -> None:
    numbers = [await store.add(flag) for _ in range(3)]
    (labelled,) = await reviews.label([numbers[0]], Label(review="dismissed"), "ada\0")
    assert (labelled.review, labelled.reviewer) == ("dismissed", "ada\ufffd")
    flags = await store.unlearned(limit=2)
    assert [(one.id, one.review) for one in flags] == [
        (numbers[0], "dismissed"),
        (numbers[1], None),
    ]
    assert flags[0].reviewed_at is not None
    assert flags[0].reviewed_at.tzinfo is UTC
    (relabelled,) = await reviews.label([numbers[0]], Label(review="confirmed"), "bob")
    assert (relabelled.review, relabelled.reviewer) == ("confirmed", "bob")


async def test_lineage_goes_back_through_every_parent(
    database: URL, runs: RunStore, store: FlagStore, flag: Flag
) -> None:
    adapters = AdapterStore(database)
    numbers = [await store.add(flag) for _ in range(6)]
    parent = None
    for _ in range(3):
        run = await begin(runs, parent)
        taken = numbers[2 * (run.id - 1) : 2 * run.id]
        await runs.set_flags(run.id, {taken[0]: "train", taken[1]: "held_out"})
        await adapters.register(version=run.id, parent=parent, model_revision="rev", sha256="s")
        parent = run.id
    assert await runs.learned_from(3) == Lineage((3, 2, 1), (numbers[4], numbers[2], numbers[0]))
    assert await runs.learned_from(1) == Lineage((1,), (numbers[0],))
    assert await runs.learned_from(9) == Lineage((), ())
    await adapters.close()


async def test_the_refine_token_is_shared_and_not_the_salt(database: URL) -> None:
    stores = [FlagStore(database) for _ in range(2)]
    tokens = {await store.refine_token() for store in stores}
    assert len(tokens) == 1
    assert tokens != {await stores[0].user_salt()}
    for store in stores:
        await store.close()
