"""Adapters that several machines share by a URL. The URL is that of a folder; other kinds differ in
fsspec's file system alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guard.adapter_files import adapter_path
from guard.adapter_folder import AdapterFolder, check_url
from guard.errors import AdapterRefused, StoreUnavailable
from guard.store.adapters import StoredAdapter
from tests.adapters import write_adapter


@pytest.fixture
def shared(tmp_path: Path) -> str:
    """The URL that all machines share."""
    return f"file://{tmp_path}/shared"


@pytest.fixture
def uploaded(tmp_path: Path, shared: str) -> StoredAdapter:
    """An adapter that one machine made and uploaded."""
    stored = write_adapter(tmp_path / "one", 3)
    AdapterFolder(tmp_path / "one", shared).upload(3)
    return stored


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_another_machine_gets_the_same_files(
    tmp_path: Path, shared: str, uploaded: StoredAdapter
) -> None:
    path = AdapterFolder(tmp_path / "two", shared).fetch(3, uploaded.sha256)
    assert path == adapter_path(tmp_path / "two", 3)
    assert contents(path) == contents(adapter_path(tmp_path / "one", 3))


def test_an_adapter_that_is_there_is_not_copied_again(
    tmp_path: Path, shared: str, uploaded: StoredAdapter
) -> None:
    folder = AdapterFolder(tmp_path / "two", shared)
    path = folder.fetch(3, uploaded.sha256)
    inode = path.stat().st_ino
    assert folder.fetch(3, uploaded.sha256).stat().st_ino == inode


def test_several_processes_may_copy_it_at_once(
    tmp_path: Path, shared: str, uploaded: StoredAdapter
) -> None:
    folder = AdapterFolder(tmp_path / "two", shared)
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(lambda _: folder.fetch(3, uploaded.sha256), range(8)))
    assert paths == {adapter_path(tmp_path / "two", 3)}
    assert [entry.name for entry in folder.path.iterdir()] == ["0003"]


@pytest.mark.parametrize("file", ["manifest.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_a_wrong_copy_is_refused_and_not_kept(
    tmp_path: Path, shared: str, uploaded: StoredAdapter, file: str, fault: str
) -> None:
    remote = adapter_path(tmp_path / "shared", 3) / file
    right = remote.read_bytes()
    remote.unlink()
    if fault == "altered":
        remote.write_bytes(right + b" ")
    folder = AdapterFolder(tmp_path / "two", shared)
    with pytest.raises(AdapterRefused, match="Adapter 3"):
        folder.fetch(3, uploaded.sha256)
    assert list(folder.path.iterdir()) == []
    remote.write_bytes(right)
    assert folder.fetch(3, uploaded.sha256).is_dir()


def test_a_url_that_does_not_answer_refuses_and_fails(
    tmp_path: Path, uploaded: StoredAdapter
) -> None:
    # No file system can make a directory below a file.
    (tmp_path / "file").write_text("")
    url = f"file://{tmp_path}/file/shared"
    with pytest.raises(StoreUnavailable, match="Adapter 3 cannot be copied to"):
        AdapterFolder(tmp_path / "one", url).upload(3)
    with pytest.raises(AdapterRefused, match="Adapter 3 cannot be copied from"):
        AdapterFolder(tmp_path / "two", url).fetch(3, uploaded.sha256)


def test_a_folder_without_a_url_is_all_there_is(tmp_path: Path) -> None:
    stored = write_adapter(tmp_path / "one", 3)
    folder = AdapterFolder(tmp_path / "one")
    folder.upload(3)
    assert folder.fetch(3, stored.sha256) == adapter_path(tmp_path / "one", 3)


@pytest.mark.parametrize(
    ("url", "says"),
    [("data/adapters", "not a URL"), ("nonsense://bucket", "nonsense:// cannot be used")],
)
def test_a_url_that_cannot_be_used_is_named(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_url(url)
