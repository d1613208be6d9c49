"""The adapter registry: what may be active, the rollback path, and that no number is reused."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL

from guard.errors import AdapterConflict, AdapterUnknown, StoreUnavailable
from guard.store.adapters import AdapterStore, rollback_path
from guard.store.database import connect
from guard.store.runs import RunStore


@pytest.fixture
async def runs(database: URL) -> AsyncIterator[RunStore]:
    store = RunStore(database)
    yield store
    await store.close()


async def make(runs: RunStore, adapters: AdapterStore, parent: int | None = None) -> int:
    """Registers a candidate and returns its version."""
    run = await runs.start(model="m", model_revision="r", parent=parent, seed=0, options={})
    await adapters.register(
        version=run.id, parent=parent, model_revision="r", sha256=f"sha-{run.id}"
    )
    return run.id


async def test_at_first_the_base_alone_is_active(adapters: AdapterStore) -> None:
    assert await adapters.active() is None
    assert await adapters.preferred() == [None]
    assert await adapters.list() == []


async def test_a_registered_adapter_is_a_candidate_until_it_is_activated(
    runs: RunStore, adapters: AdapterStore
) -> None:
    version = await make(runs, adapters)
    stored = await adapters.get(version)
    assert stored is not None
    assert (stored.status, stored.sha256, stored.parent) == ("candidate", f"sha-{version}", None)
    activation = await adapters.activate(version, by="run 1", reason="passed")
    assert (activation.version, activation.by, activation.reason) == (version, "run 1", "passed")
    assert await adapters.active() == version
    promoted = await adapters.get(version)
    assert promoted is not None
    assert promoted.status == "promoted"


async def test_registering_again_changes_nothing_but_never_other_files(
    runs: RunStore, adapters: AdapterStore
) -> None:
    version = await make(runs, adapters)
    await adapters.activate(version, by="me", reason="")
    again = await adapters.register(
        version=version, parent=None, model_revision="r", sha256=f"sha-{version}"
    )
    assert again.status == "promoted"
    with pytest.raises(AdapterConflict, match=f"Adapter {version}"):
        await adapters.register(version=version, parent=None, model_revision="r", sha256="other")


async def test_an_adapter_needs_its_run(adapters: AdapterStore) -> None:
    with pytest.raises(StoreUnavailable):
        await adapters.register(version=99, parent=None, model_revision="r", sha256="s")


async def test_unknown_and_rejected_adapters_are_not_activated(
    runs: RunStore, adapters: AdapterStore
) -> None:
    with pytest.raises(AdapterUnknown, match="no adapter 7"):
        await adapters.activate(7, by="me", reason="")
    version = await make(runs, adapters)
    await adapters.set_status(version, "rejected")
    with pytest.raises(AdapterConflict, match="rejected"):
        await adapters.activate(version, by="me", reason="")
    assert await adapters.active() is None


async def test_the_active_adapter_is_not_rejected(runs: RunStore, adapters: AdapterStore) -> None:
    version = await make(runs, adapters)
    await adapters.activate(version, by="me", reason="")
    with pytest.raises(AdapterConflict, match="is active"):
        await adapters.set_status(version, "rejected")


async def test_rolling_back_again_goes_further_back(runs: RunStore, adapters: AdapterStore) -> None:
    first, second, third = [await make(runs, adapters) for _ in range(3)]
    for version in (first, second, third):
        await adapters.activate(version, by="me", reason="")
    gone_to = [(await adapters.rollback(by="me", reason="worse")).version for _ in range(3)]
    assert gone_to == [second, first, None]
    with pytest.raises(AdapterConflict, match="nothing to go back to"):
        await adapters.rollback(by="me", reason="")
    history = await adapters.history()
    assert [entry.version for entry in history] == [None, first, second, third, second, first]
    assert history[0].reason == "worse"


async def test_a_rejected_adapter_is_not_on_the_rollback_path(
    runs: RunStore, adapters: AdapterStore
) -> None:
    first, second, third = [await make(runs, adapters) for _ in range(3)]
    for version in (first, second, third):
        await adapters.activate(version, by="me", reason="")
    await adapters.set_status(second, "rejected")
    assert await adapters.preferred() == [third, first, None]


async def test_rollbacks_at_once_each_go_one_step(database: URL, runs: RunStore) -> None:
    stores = [AdapterStore(database) for _ in range(8)]
    for _ in stores:
        version = await make(runs, stores[0])
        await stores[0].activate(version, by="me", reason="")
    done = await asyncio.gather(*(store.rollback(by="me", reason="") for store in stores))
    assert {activation.version for activation in done} == {None, *range(1, len(stores))}
    for store in stores:
        await store.close()


@pytest.mark.parametrize(
    ("activated", "way"),
    [
        ([], [None]),
        ([1], [1, None]),
        ([1, 1], [1, None]),
        ([1, 2, 1], [1, None]),
        ([1, 2, 1, 3], [3, 1, None]),
        ([1, 2, None, 2], [2, 1, None]),
        ([1, None], [None]),
    ],
)
def test_the_rollback_path(activated: list[int | None], way: list[int | None]) -> None:
    assert rollback_path(activated) == way


async def test_a_deleted_runs_number_is_not_given_again(
    database: URL, runs: RunStore, adapters: AdapterStore
) -> None:
    run = await runs.start(model="m", model_revision="r", parent=None, seed=0, options={})
    engine = connect(database)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM runs")
    await engine.dispose()
    assert await make(runs, adapters) > run.id
