"""The command line: its output and its errors."""

import asyncio
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL
from typer.testing import CliRunner, Result

from guard.criteria import Place
from guard.store.flags import Flag, FlagStore
from server.cli.main import app
from tests.databases import migrated_file


def setback(*arguments: str) -> Result:
    """Runs the command in a terminal wide enough for tables."""
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
    return migrated_file(Path("data/setback.db"))


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
    unseen = dict.fromkeys(
        ["review", "reviewer", "reviewed_at", "corrected_category", "corrected_answer", "note"]
    )
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
    assert "no flag 42" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flags", "show", "abc"], "ID"),
        (["flags", "show", "0"], "ID"),
        (["flags", "show", "99999999999999999999"], "ID"),
        (["flags", "list", "--limit", "0"], "--limit"),
        (["flags", "burn"], "burn"),
    ],
)
def test_wrong_arguments_are_named(clean_folder: Path, arguments: list[str], message: str) -> None:
    result = setback(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_label_names_a_category_or_a_criterion_in_force(
    migrated: URL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[criteria]]\nname = "doses"\ndescription = "It tells a dose."\n')
    monkeypatch.setenv("SETBACK_POLICY_FILE", str(policy))
    unknown = setback("flags", "label", "1", "--confirm", "--category", "rudeness")
    assert unknown.exit_code == 2
    assert "harassment" in unknown.stderr
    assert "doses" in unknown.stderr
    known = setback("flags", "label", "42", "--confirm", "--category", "doses")
    assert (known.exit_code, known.stdout) == (1, "")
    assert "no flag 42" in known.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///absent.db", "setback db upgrade"),
        ("postgres://me:s3cret@127.0.0.1:1/setback", "127.0.0.1:1"),
    ],
)
def test_a_database_that_fails_is_a_clear_error(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    for arguments in (("flags", "list"), ("flags", "show", "1")):
        result = setback(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr
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
        "import sys, server.cli.main; "
        "sys.exit(', '.join({'torch', 'vllm', 'transformers'} & sys.modules.keys()) or 0)"
    )
    checked = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")
    command = Path(sys.executable).with_name("setback")
    version = subprocess.run(
        [command, "--version"], capture_output=True, check=True, env=os.environ
    )
    assert version.stdout.decode().startswith("setback 0.")


def test_list_searches_and_filters_by_status(migrated: URL, flag: Flag) -> None:
    of_input = replace(flag, answer="", place=Place.INPUT)
    write(migrated, flag, replace(flag, answer="A zeppelin."), of_input)
    assert setback("flags", "label", "1", "--dismiss").exit_code == 0
    for arguments, expected in (
        (("--search", "zepp"), [2]),
        (("--status", "open"), [3, 2]),
        (("--status", "dismissed"), [1]),
        (("--place", "input"), [3]),
    ):
        listed = json.loads(setback("flags", "list", "--json", *arguments).stdout)
        assert [one["id"] for one in listed] == expected
    wrong = setback("flags", "list", "--status", "maybe")
    assert wrong.exit_code == 2
    assert "open, confirmed, dismissed" in wrong.stderr
    assert "output, input, tool_result" in setback("flags", "list", "--place", "x").stderr
    shown = setback("flags", "show", "3").stdout
    assert "place:" in shown
    assert "--- answer" not in shown


def test_corrections_are_kept_and_shown(migrated: URL, flag: Flag) -> None:
    write(migrated, flag)
    corrections = [
        "--category",
        "hate",
        "--answer",
        "Leave it be.",
        "--note",
        "seen",
        "--by",
        "ada",
    ]
    assert setback("flags", "label", "1", "--confirm", *corrections).exit_code == 0
    page = setback("flags", "show", "1").stdout
    for part in ("confirmed by ada", "hate", "Leave it be.", "seen"):
        assert part in page
    assert setback("flags", "label", "1", "--confirm", "--category", "x").exit_code == 2


def test_old_flags_and_those_of_one_user_are_deleted(migrated: URL, flag: Flag) -> None:
    old = datetime.now(UTC) - timedelta(days=91)
    write(migrated, replace(flag, created_at=old), flag, replace(flag, user_hash="ab"))
    assert "Deleted 1 flags" in setback("flags", "purge", "--older-than", "90d").stdout
    assert "Deleted 1 flags" in setback("flags", "forget", "ab").stdout
    left = json.loads(setback("flags", "list", "--json").stdout)
    assert [one["id"] for one in left] == [2]
    assert setback("flags", "purge", "--older-than", "soon").exit_code == 2
    assert "flags.deleted" in setback("audit").stdout


def test_keys_are_made_listed_and_revoked(migrated: URL) -> None:
    assert "No keys" in setback("keys", "list").stdout
    secret = setback("keys", "make", "console", "--role", "admin").stdout.strip()
    created = json.loads(setback("keys", "make", "ci", "--json").stdout)
    assert (created["role"], created["name"], created["requests_per_minute"]) == (
        "call",
        "ci",
        None,
    )
    assert "the policy file has no 'x'" in setback("keys", "make", "a", "--policy", "x").stderr
    listed = setback("keys", "list", "--json").stdout
    assert [key["role"] for key in json.loads(listed)] == ["admin", "call"]
    assert secret not in listed
    assert "sha256" not in listed
    assert "Key 2 (ci) is revoked" in setback("keys", "revoke", "2").stdout
    assert json.loads(setback("keys", "list", "--json").stdout)[1]["revoked_at"]
    assert "no key 9" in setback("keys", "revoke", "9").stderr
    assert setback("keys", "make", "x", "--role", "king").exit_code == 2


def test_a_key_may_have_a_limit(migrated: URL) -> None:
    limited = "keys", "make", "ci", "--requests-per-minute"
    assert json.loads(setback(*limited, "60", "--json").stdout)["requests_per_minute"] == 60
    assert re.search(r"ci +call +\.{3}\S+ +60 ", setback("keys", "list").stdout)
    assert setback(*limited, "0").exit_code == 2


def test_a_user_without_a_name_is_known_by_number(
    migrated: URL, flag: Flag, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs with any user id."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    (number,) = write(migrated, flag)
    assert setback("keys", "make", "ci").exit_code == 0
    labelled = setback("flags", "label", str(number), "--confirm")
    assert labelled.exit_code == 0, labelled.output
    assert "54321" in setback("flags", "show", str(number)).stdout


def test_one_flag_is_deleted_for_good(migrated: URL, flag: Flag) -> None:
    write(migrated, flag, flag)
    assert setback("flags", "delete", "1").stdout == "Deleted flag 1.\n"
    assert [row["id"] for row in json.loads(setback("flags", "list", "--json").stdout)] == [2]
    again = setback("flags", "delete", "1")
    assert again.exit_code == 1
    assert "There is no flag 1" in again.stderr
