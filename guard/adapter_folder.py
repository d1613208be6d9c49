"""Where adapters are: a folder of this machine and, when several machines share them, a URL of any
kind that fsspec knows, such as s3://bucket/adapters. Owns the copies between the two. Does not
check whether an adapter fits a model (adapter_files.py).

At the URL an adapter has a directory with the same name and files. Its manifest is written last, so
a directory with a manifest is whole.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.adapter_files import MANIFEST, adapter_path, check_sealed
from guard.errors import AdapterRefused, StoreUnavailable


@dataclass(frozen=True)
class AdapterFolder:
    """A folder of sealed adapters. url: of the copies that all machines share; None for a folder
    that only this machine uses, or that is shared itself.

    Usage:
        folder.upload(3)
        path = folder.fetch(3, sha256)
    """

    path: Path
    url: str | None = None

    def upload(self, version: int) -> None:
        """Copies a sealed adapter to the URL; does nothing without one. Safe to repeat.

        Raises StoreUnavailable. May take long: call it in a thread.
        """
        if self.url is None:
            return
        local = adapter_path(self.path, version)
        try:
            system, remote = _directory(self.url, version)
            system.makedirs(remote, exist_ok=True)
            for file in sorted(local.iterdir(), key=lambda file: file.name == MANIFEST):
                system.put_file(str(file), f"{remote}/{file.name}")
        # Each file system has errors of its own, and not all are OSErrors.
        except Exception as error:
            raise StoreUnavailable(
                f"Adapter {version} cannot be copied to the adapters' URL: {error}"
            ) from error

    def fetch(self, version: int, sha256: str) -> Path:
        """Returns an adapter's directory on this machine, copied from the URL if it is not there.

        sha256: the manifest's hash, from the registry. Raises AdapterRefused if it cannot be copied
        or is not the adapter that was registered; nothing of it is kept then. May take long: call
        it in a thread.
        """
        final = adapter_path(self.path, version).absolute()
        if self.url is None or final.is_dir():
            return final
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=self.path))
        try:
            self._download(version, sha256, temporary)
            # mkdtemp makes it private; servers of other users may share the folder.
            temporary.chmod(0o755)
            _rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final

    def _download(self, version: int, sha256: str, into: Path) -> None:
        assert self.url is not None
        try:
            system, remote = _directory(self.url, version)
            for file in system.ls(remote, detail=False):
                name = file.rstrip("/").rpartition("/")[2]
                system.get_file(file, str(into / name))
        except Exception as error:
            raise AdapterRefused(
                f"Adapter {version} cannot be copied from the adapters' URL: {error}"
            ) from error
        check_sealed(into, version=version, sha256=sha256)


def check_url(url: str) -> str:
    """Returns the URL. Raises ValueError when its kind is unknown or needs a package."""
    from fsspec.core import get_filesystem_class, split_protocol

    protocol, _ = split_protocol(url)
    if protocol is None:
        raise ValueError("not a URL; name a folder with adapters_dir, or give s3://bucket/folder")
    try:
        get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{protocol}:// cannot be used: {error}") from error
    return url


def _directory(url: str, version: int) -> tuple[Any, str]:
    """Returns the URL's file system and the adapter's directory there."""
    from fsspec.core import url_to_fs

    # Without its cache of listings: other machines write to it.
    system, root = url_to_fs(url, use_listings_cache=False)
    return system, str(adapter_path(Path(root), version))


def _rename(temporary: Path, final: Path) -> None:
    """Puts a checked copy into place, unless another process was faster."""
    try:
        os.rename(temporary, final)
    except OSError:
        if not final.is_dir():
            raise
