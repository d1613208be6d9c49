"""The adapter that ships with a model is activated at its first start, and only then."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import URL

from guard.adapter_config import WEIGHTS
from guard.adapter_files import adapter_path, verify
from guard.adapter_folder import AdapterFolder
from guard.calibration import Calibration, Scales
from guard.errors import AdapterRefused
from guard.prompts import CritiqueStyle
from guard.store.adapters import AdapterStore
from guard.store.calibrations import CalibrationStore
from guard.store.runs import RunStore
from server.launch import shipped
from server.launch.shipped import ShippedAdapter
from tests.adapters import write_peft

REVISION = "local-0123"


@pytest.fixture
def adapter(tmp_path: Path) -> ShippedAdapter:
    folder = tmp_path / "shipped"
    folder.mkdir()
    write_peft(folder)
    (folder / "README.md").write_text("# Its card\n")
    return ShippedAdapter(
        folder, CritiqueStyle.LABEL, Scales(Calibration(1.2, -0.3), Calibration(1.0, 0.1)), rows=900
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


async def install(
    adapter: ShippedAdapter, database: URL, folder: Path, revision: str = REVISION
) -> bool:
    return await shipped.install(
        adapter,
        model="smollm2",
        model_revision=revision,
        database_url=database,
        folder=AdapterFolder(folder),
    )


async def test_the_first_start_puts_it_in_force_whole_and_calibrated(
    adapter: ShippedAdapter, database: URL, folder: Path, adapters: AdapterStore
) -> None:
    assert await install(adapter, database, folder)
    version = await adapters.active()
    assert version is not None
    stored = await adapters.get(version)
    assert stored is not None
    manifest = verify(
        adapter_path(folder, version),
        version=version,
        sha256=stored.sha256,
        model_revision=REVISION,
        max_rank=16,
    )
    assert manifest.critique is CritiqueStyle.LABEL
    calibrations, runs = CalibrationStore(database), RunStore(database)
    fitted = (await calibrations.in_force(REVISION))[version]
    assert (fitted.scales, fitted.rows) == (adapter.scales, 900)
    run = await runs.get(version)
    assert run is not None
    assert (run.source, run.status, run.model) == ("shipped", "promoted", "smollm2")
    await calibrations.close()
    await runs.close()


async def test_it_is_installed_once_and_by_one_of_several_servers(
    adapter: ShippedAdapter, database: URL, folder: Path, adapters: AdapterStore
) -> None:
    done = await asyncio.gather(*(install(adapter, database, folder) for _ in range(4)))
    assert sorted(done) == [False, False, False, True]
    assert len(await adapters.list()) == 1


async def test_an_operators_decision_stands(
    adapter: ShippedAdapter, database: URL, folder: Path, adapters: AdapterStore
) -> None:
    await install(adapter, database, folder)
    await adapters.rollback(by="ann", reason="the base will do")
    assert not await install(adapter, database, folder)
    assert await adapters.active() is None


async def test_another_base_on_the_same_database_gets_its_own(
    adapter: ShippedAdapter, database: URL, folder: Path, adapters: AdapterStore
) -> None:
    assert await install(adapter, database, folder)
    assert await install(adapter, database, folder, revision="local-4567")
    assert [a.model_revision for a in await adapters.list()] == ["local-4567", REVISION]


async def test_an_installation_that_was_killed_is_finished(
    adapter: ShippedAdapter, database: URL, folder: Path, adapters: AdapterStore
) -> None:
    def killed(_self: AdapterStore, *_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterStore, "activate", killed)
        with pytest.raises(KeyboardInterrupt):
            await install(adapter, database, folder)
    assert await adapters.active() is None
    assert await install(adapter, database, folder)
    assert await adapters.active() == (await adapters.list())[0].version
    assert len(await adapters.list()) == 1


async def test_a_damaged_adapter_is_not_put_in_force(
    adapter: ShippedAdapter, database: URL, folder: Path, adapters: AdapterStore
) -> None:
    (adapter.folder / WEIGHTS).unlink()
    with pytest.raises(AdapterRefused, match="adapter_model.safetensors is missing"):
        await install(adapter, database, folder)
    assert await adapters.active() is None
