"""`setback doctor`: checks whether a server can start here, and says how to fix what prevents it.
Owns the order of the checks and their messages. What is checked reports its own problems.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer

from guard.adapter_files import verify
from guard.errors import GuardError
from guard.policy_file import load_policies
from guard.store.adapters import AdapterStore, StoredAdapter
from guard.store.calibrations import CalibrationStore
from guard.store.flags import FlagStore
from guard.store.keys import KeyStore
from guard.store.url import without_driver
from server.cli.terminal import AsJson, ask, print_json, print_table
from server.launch.models import DEFAULT, find_model
from server.launch.preflight import CacheRequest, check_cache, check_chat_template, check_folder
from server.settings import Settings, SettingsInvalid, ignored_variables, load_settings

State = Literal["ok", "warning", "problem"]
_MIN_FREE_BYTES = 2 * 1024**3
_GIB = 1024**3
_NETWORK_FILE_SYSTEMS = (
    *("nfs", "cifs", "smb", "afs", "ceph", "gluster", "lustre", "gpfs", "beegfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone"),
)


@dataclass(frozen=True)
class Finding:
    """The result of a check. message: what was found, or what is wrong and how to fix it."""

    check: str
    state: State
    message: str


def doctor(
    model: Annotated[
        str, typer.Argument(help="As for `setback serve`.", show_default=True)
    ] = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Check configuration, database, model, adapters, disk and processor."""
    findings = list(_findings(model))
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        print_table(
            ("", "Check", ""),
            ((finding.state, finding.check, finding.message) for finding in findings),
        )
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _findings(model: str) -> Iterator[Finding]:
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        # All other checks need the settings.
        yield Finding("configuration", "problem", str(error))
        return
    yield Finding("configuration", "ok", "valid")
    if ignored := ignored_variables():
        message = f"unknown settings are ignored: {', '.join(ignored)}"
        yield Finding("environment", "warning", message)
    yield _checked("policy", lambda: _policy(settings))
    database = _checked("database", lambda: _database(settings))
    yield database
    if database.state == "ok":
        yield _checked("keys", lambda: _keys(settings))
        yield _checked("adapter in force", lambda: _adapter(settings))
    yield _checked("model", lambda: _model(settings, model))
    for name, folder in _folders(settings).items():
        yield _folder(name, folder)
    yield from _network_share(settings)
    yield _processor()


def _checked(name: str, check: Callable[[], str]) -> Finding:
    """Returns the check's message, or the error that it raised as a problem."""
    try:
        return Finding(name, "ok", check())
    except (GuardError, ValueError, OSError) as error:
        return Finding(name, "problem", str(error))


def _policy(settings: Settings) -> str:
    policies = load_policies(settings.policy_file)
    hashes = ", ".join(f"{policy.name} {policy.hash}" for policy in policies)
    return f"{settings.policy_file or 'the default file'}: {hashes}"


def _database(settings: Settings) -> str:
    ask(FlagStore, lambda store: store.check(), reported=False)
    return f"{without_driver(settings.database_url)} is at the newest revision"


def _keys(settings: Settings) -> str:
    keys = ask(KeyStore, lambda store: store.list(), reported=False)
    live = [key for key in keys if key.revoked_at is None]
    policies = load_policies(settings.policy_file)
    lost = [key for key in live if key.policy and policies.find(key.policy) is None]
    if lost:
        named = ", ".join(f"{key.id} ({key.policy})" for key in lost)
        raise ValueError(f"the policy file does not have the policies of these keys: {named}")
    if live:
        return f"{len(live)} in force"
    return "none: only this machine is answered; `setback keys make` creates one"


def _adapter(settings: Settings) -> str:
    async def active(store: AdapterStore) -> StoredAdapter | None:
        version = await store.active()
        return None if version is None else await store.get(version)

    adapter = ask(AdapterStore, active, reported=False)
    if adapter is None:
        return "the base alone"
    # Only the server knows its base model and its limit of the rank.
    verify(
        settings.adapter_folder.fetch(adapter.version, adapter.sha256),
        version=adapter.version,
        sha256=adapter.sha256,
        model_revision=adapter.model_revision,
        max_rank=sys.maxsize,
    )
    fits = ask(
        CalibrationStore, lambda store: store.in_force(adapter.model_revision), reported=False
    )
    fit = fits.get(adapter.version)
    calibration = (
        "not calibrated; see `setback calibrate`"
        if fit is None
        else f"calibrated on {fit.rows} lines"
    )
    return f"adapter {adapter.version}, every byte as registered, {calibration}"


def _model(settings: Settings, name: str) -> str:
    """Raises ValueError for a model that cannot be served with vLLM's default options."""
    model = find_model(name)
    folder = model.prepare(settings.models_dir)
    if not folder.exists():
        return f"{name}: not a local folder; vLLM will download it by that name"
    check_folder(folder)
    check_chat_template(folder)
    if not _gpus():
        check_cache(folder, CacheRequest(model.options.get("kv_cache_memory_bytes")))
    return f"{folder} can be served" if name == str(folder) else f"{name}, whole, in {folder}"


def _folders(settings: Settings) -> dict[str, Path]:
    folders = {"adapters": settings.adapters_dir, "runs": settings.refine.work_dir}
    url = settings.database_url
    if url.get_backend_name() == "sqlite":
        folders["flags"] = Path(str(url.database)).parent
    return folders


def _folder(name: str, folder: Path) -> Finding:
    """Checks that it is writable, and how much space is left there."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    check = f"disk for {name}"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding(
            check, "problem", f"{existing} cannot be written to; change its owner or mode"
        )
    free = shutil.disk_usage(existing).free
    message = f"{free / _GIB:.1f} GiB free at {folder}"
    if free < _MIN_FREE_BYTES:
        return Finding(check, "warning", f"{message}; free some space, or use another disk")
    return Finding(check, "ok", message)


def _network_share(settings: Settings) -> Iterator[Finding]:
    """Yields a warning when SQLite's file is on a network share, whose locks it cannot rely on."""
    url = settings.database_url
    if url.get_backend_name() != "sqlite":
        return
    file_system = _file_system(Path(str(url.database)).absolute())
    if file_system.startswith(_NETWORK_FILE_SYSTEMS):
        yield Finding(
            "database's disk",
            "warning",
            f"{url.database} is on a network share ({file_system}), where SQLite's locks do not "
            "work; use a local disk, or PostgreSQL",
        )


def _file_system(path: Path) -> str:
    """Returns the kind of file system that a path is on, or would be on."""
    mounts = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _processor() -> Finding:
    import torch

    if count := _gpus():
        gpu = torch.cuda.get_device_properties(0)
        return Finding("GPU", "ok", f"{count} x {gpu.name}, {gpu.total_memory / _GIB:.0f} GiB")
    message = (
        f"none: {os.cpu_count()} CPU cores serve and train, which is enough for small models only"
    )
    return Finding("GPU", "warning", message)
