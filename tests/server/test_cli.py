"""The command line: what it prints, and how it ends when it cannot."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL
from typer.testing import CliRunner, Result

from guard.store import migrate
from guard.store.database import parse_url
from guard.store.flags import Flag, FlagStore
from server.cli import app


def setback(*arguments: str) -> Result:
    """Runs the command; a table is wide enough to stay whole."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, terminal_width=200)


def write(url: URL, *flags: Flag) -> list[int]:
    async def run() -> list[int]:
        store = FlagStore(url)
        numbers = [await store.add(flag) for flag in flags]
        await store.close()
        return numbers

    return asyncio.run(run())


@pytest.fixture
def migrated(clean_folder: Path) -> URL:
    """The default database, migrated."""
    url = parse_url("sqlite:///data/setback.db")
    migrate.upgrade(url)
    return url


@pytest.mark.usefixtures("clean_folder")
def test_upgrade_on_either_database_then_list(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    for _ in range(2):
        upgraded = setback("db", "upgrade")
        assert upgraded.exit_code == 0
        assert "is at revision" in upgraded.stdout
    assert setback("flags", "list").stdout == "No flags.\n"


def test_list_shows_newest_first_without_conversation_or_answer(migrated: URL, flag: Flag) -> None:
    write(migrated, flag, replace(flag, adapter="[bold]v2", categories=("illicit",)))
    lines = setback("flags", "list").stdout.splitlines()
    assert lines[0].split()[:2] == ["ID", "Time"]
    assert [line.split()[0] for line in lines[1:]] == ["2", "1"]
    assert "[bold]v2" in lines[1]
    assert "hate/threatening, violence" in lines[2]
    assert "gnome" not in "".join(lines)


def test_list_filters_and_pages(migrated: URL, flag: Flag) -> None:
    write(migrated, flag, replace(flag, categories=("illicit",)), replace(flag, request_id="r9"))

    def listed(*arguments: str) -> list[int]:
        return [
            one["id"] for one in json.loads(setback("flags", "list", "--json", *arguments).stdout)
        ]

    assert listed() == [3, 2, 1]
    assert listed("--limit", "1") == [3]
    assert listed("--before", "3") == [2, 1]
    assert listed("--category", "illicit") == [2]
    assert listed("--request-id", "r9") == [3]


def test_show_prints_everything_that_is_kept(migrated: URL, flag: Flag) -> None:
    revised = replace(flag, user_hash="ab12", released_chars=6, revision="Ask the gnome first.")
    write(migrated, revised)
    page = setback("flags", "show", "1").stdout
    for part in (
        "chatcmpl-1",
        "/v1/chat/completions",
        "block",
        "0.930: hate/threatening, violence",
        "violence 0.600, hate/threatening 0.330",
        "practice",
        "base",
        "0123456789abcdef",
        "ab12",
        "How do I harm the garden gnome?",
        "First, you take the gnome.",
        "6 of 26 characters",
        "Ask the gnome first.",
    ):
        assert part in page


def test_show_as_json_is_the_whole_flag(migrated: URL, flag: Flag) -> None:
    write(migrated, flag)
    shown = json.loads(setback("flags", "show", "1", "--json").stdout)
    expected = json.loads(json.dumps({**vars(flag), "created_at": flag.created_at.isoformat()}))
    unseen = {"review": None, "reviewer": None, "reviewed_at": None}
    assert shown == {"id": 1, **expected, **unseen}


def test_show_prints_parts_and_tool_calls(migrated: URL, flag: Flag) -> None:
    parts = [{"type": "text", "text": "in a part"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "call-7"}]}
    write(migrated, replace(flag, messages=[{"role": "user", "content": parts}, call]))
    page = setback("flags", "show", "1").stdout
    assert "in a part" in page
    assert "call-7" in page


def test_show_lets_no_text_steer_the_terminal(migrated: URL, flag: Flag) -> None:
    steering = "\x1b[2J\x1b]0;title\x07 hidden\r\u202e"
    message = {"role": "user\x1b", "content": steering}
    steered = replace(flag, answer=steering, revision=steering, adapter=steering)
    write(migrated, replace(steered, messages=[message]))
    for page in (
        setback("flags", "show", "1").stdout,
        setback("flags", "show", "1", "--json").stdout,
        setback("flags", "list").stdout,
    ):
        assert "hidden" in page
        assert not set(page) & set("\x1b\x07\r\u202e")


def test_an_unknown_id_is_a_clear_error(migrated: URL) -> None:
    result = setback("flags", "show", "42")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no flag 42" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["flags", "show", "abc"], "ID"),
        (["flags", "show", "0"], "ID"),
        (["flags", "show", "99999999999999999999"], "ID"),
        (["flags", "list", "--limit", "0"], "--limit"),
        (["flags", "list", "--category", "rudeness"], "harassment"),
        (["flags", "burn"], "burn"),
    ],
)
def test_wrong_arguments_are_named(clean_folder: Path, arguments: list[str], said: str) -> None:
    result = setback(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///absent.db", "setback db upgrade"),
        ("postgres://me:s3cret@127.0.0.1:1/setback", "127.0.0.1:1"),
    ],
)
def test_a_database_that_fails_is_a_clear_error(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    for arguments in (("flags", "list"), ("flags", "show", "1")):
        result = setback(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
        assert "s3cret" not in result.stderr


def test_wrong_settings_are_a_clear_error(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETBACK_ON_FAILURE", "ajar")
    for arguments in (("flags", "list"), ("db", "upgrade")):
        result = setback(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("setback: SETBACK_ON_FAILURE: ")


def test_the_installed_command_starts_without_vllm_or_torch(clean_folder: Path) -> None:
    code = (
        "import sys, server.cli; "
        "sys.exit(', '.join({'torch', 'vllm', 'transformers'} & sys.modules.keys()) or 0)"
    )
    checked = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")
    command = Path(sys.executable).with_name("setback")
    version = subprocess.run(
        [command, "--version"], capture_output=True, check=True, env=os.environ
    )
    assert version.stdout.decode().startswith("setback 0.")
