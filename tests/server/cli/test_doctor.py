"""`setback doctor` reports what it finds, what is wrong, and how to fix it."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from guard.store.keys import KeyStore
from guard.store.url import parse_url
from server.cli.main import app
from tests.databases import migrated_file


@pytest.fixture
def healthy(clean_folder: Path) -> Path:
    """A working folder with a migrated database."""
    migrated_file(Path("data/setback.db"))
    return clean_folder


def findings(*arguments: str, code: int) -> dict[str, tuple[str, str]]:
    """Returns state and message of each check."""
    done = CliRunner().invoke(app, ["doctor", "--json", *arguments])
    assert done.exit_code == code, done.output
    return {check["check"]: (check["state"], check["message"]) for check in json.loads(done.stdout)}


def test_all_is_well(healthy: Path) -> None:
    checks = findings("practice", code=0)
    assert {state for state, _ in checks.values()} <= {"ok", "warning"}
    assert checks["database"] == ("ok", "sqlite:///data/setback.db is at the newest revision")
    state, message = checks["model"]
    assert state == "ok"
    assert message.startswith("practice, whole")
    assert checks["adapter in force"] == ("ok", "the base alone")
    assert "setback keys make" in checks["keys"][1]
    assert "GiB free" in checks["disk for flags"][1]
    assert CliRunner().invoke(app, ["doctor", "practice"]).exit_code == 0


def test_a_key_whose_policy_is_gone_is_a_problem(healthy: Path) -> None:
    async def make_key() -> None:
        store = KeyStore(parse_url("sqlite:///data/setback.db"))
        await store.make("a", "call", by="a test", policy="gone")
        await store.close()

    asyncio.run(make_key())
    state, message = findings("practice", code=1)["keys"]
    assert (state, message) == (
        "problem",
        "the policy file does not have the policies of these keys: 1 (gone)",
    )


def test_a_missing_database_is_a_problem_with_its_fix(clean_folder: Path) -> None:
    state, message = findings("practice", code=1)["database"]
    assert state == "problem"
    assert "setback db upgrade" in message


@pytest.mark.parametrize(
    ("mounts", "warned"),
    [
        ({"/": "ext4"}, False),
        ({"/": "nfs4"}, True),
        ({"/": "overlay", "FOLDER": "cifs"}, True),
        ({"/": "nfs4", "FOLDER": "xfs"}, False),
    ],
)
def test_sqlite_on_a_network_share_is_a_warning(
    healthy: Path, monkeypatch: pytest.MonkeyPatch, mounts: dict[str, str], warned: bool
) -> None:
    disks = [
        SimpleNamespace(mountpoint=str(healthy) if point == "FOLDER" else point, fstype=kind)
        for point, kind in mounts.items()
    ]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_options: disks)
    checks = findings("practice", code=0)
    assert ("database's disk" in checks) is warned
    if warned:
        state, message = checks["database's disk"]
        assert state == "warning"
        assert "PostgreSQL" in message


def test_wrong_settings_are_named(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETBACK_CRITIC_TIMEOUT_S", "soon")
    checks = findings("practice", code=1)
    assert list(checks) == ["configuration"]
    assert "SETBACK_CRITIC_TIMEOUT_S" in checks["configuration"][1]


def test_a_wrong_policy_is_named(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETBACK_POLICY_FILE", "missing.toml")
    assert "missing.toml" in findings("practice", code=1)["policy"][1]


def test_a_folder_that_is_no_model_is_a_problem(healthy: Path) -> None:
    assert "no config.json" in findings(str(healthy), code=1)["model"][1]
    assert "will download it" in findings("Qwen/Qwen3-4B", code=0)["model"][1]


def test_a_model_without_chat_template_or_memory_is_a_problem(
    healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (healthy / "config.json").write_text("{}")
    assert "--chat-template" in findings(str(healthy), code=1)["model"][1]
    (healthy / "chat_template.jinja").write_text("{{ messages }}")
    memory = SimpleNamespace(total=4 << 30, available=2 << 30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "pass --kv-cache-memory-bytes 1024M" in findings(str(healthy), code=1)["model"][1]


def test_a_folder_that_is_a_file_is_a_problem(
    healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (healthy / "file").touch()
    monkeypatch.setenv("SETBACK_ADAPTERS_DIR", "file")
    state, message = findings("practice", code=1)["disk for adapters"]
    assert state == "problem"
    assert "cannot be written" in message


def test_variables_that_are_no_settings_are_named(
    healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETBACK_REFINE_PORT", "tcp://10.0.0.1:80")
    state, message = findings("practice", code=0)["environment"]
    assert state == "warning"
    assert "SETBACK_REFINE_PORT" in message
