"""`setback policy`: what is wrong with a file, and what it would have done."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from guard.policy import Action
from guard.store import migrate
from guard.store.flags import Flag, FlagStore
from guard.store.policies import PolicyStore, StoredPolicyFile
from guard.store.url import parse_url
from server.cli.main import app

URL = parse_url("sqlite:///data/setback.db")
POLICY = """[default]
threshold = 0.95
[[criteria]]
name = "doses"
description = "It names a dose."
"""


@pytest.fixture(autouse=True)
def _files(clean_folder: Path, flag: Flag) -> None:
    """A policy, and a database with a flag of today and one of last year."""
    Path("policy.toml").write_text(POLICY)
    migrate.upgrade(URL)

    async def fill() -> None:
        store = FlagStore(URL)
        for days in (0, 365):
            time = datetime.now(UTC) - timedelta(days=days)
            await store.add(replace(flag, created_at=time, action=Action.REVISE))
        await store.close()

    asyncio.run(fill())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["policy", *arguments])


def test_check_prints_the_rules() -> None:
    done = run("check", "policy.toml")
    assert done.exit_code == 0
    assert "1 criteria beside the categories" in done.stdout
    assert "Policy default (" in done.stdout
    assert "doses" in done.stdout
    (policy,) = json.loads(run("check", "policy.toml", "--json").stdout)
    assert policy["rules"]["hate"] == {"threshold": 0.95, "action": "revise"}


def test_check_names_line_and_fix() -> None:
    Path("policy.toml").write_text(POLICY.replace("0.95", "95"))
    done = run("check", "policy.toml")
    assert done.exit_code == 2
    assert "policy.toml: line 2: default.threshold: 95 is not a number from 0 to 1" in done.stderr


def test_try_decides_on_flags_of_the_time_again() -> None:
    done = run("try", "policy.toml")
    assert done.exit_code == 0, done.output
    assert "on 1 flags since" in done.stdout
    assert "revise" in done.stdout
    assert "pass" in done.stdout
    assert "The criterion doses was not read then in 1 of them" in done.stdout
    longer = json.loads(run("try", "policy.toml", "--since", "400d", "--json").stdout)
    assert longer["changes"] == [
        {"was": "revise", "would_be": "pass", "flags": [2, 1], "confirmed": 0, "dismissed": 0}
    ]


def test_one_of_several_policies_is_checked_and_tried() -> None:
    Path("policy.toml").write_text(POLICY + "[policies.kids.default]\nthreshold = 0.1\n")
    assert "Policy kids (" in run("check", "policy.toml").stdout
    tried = json.loads(run("try", "policy.toml", "--policy", "kids", "--json").stdout)
    assert [change["would_be"] for change in tried["changes"]] == ["revise"]
    assert "no policy 'x'" in run("try", "policy.toml", "--policy", "x").stderr


def test_a_file_is_activated_in_the_database() -> None:
    assert run("activate", "policy.toml").exit_code == 0

    async def newest() -> StoredPolicyFile | None:
        store = PolicyStore(URL)
        try:
            return await store.newest()
        finally:
            await store.close()

    activated = asyncio.run(newest())
    assert activated is not None
    assert activated.text == POLICY
    Path("policy.toml").write_text("refusal = 3")
    assert "line 1: refusal" in run("activate", "policy.toml").stderr
    assert asyncio.run(newest()) == activated


@pytest.mark.parametrize("since", ["yesterday", "0d", "99999999d"])
def test_a_wrong_time_is_refused(since: str) -> None:
    done = run("try", "policy.toml", "--since", since)
    assert done.exit_code == 2
    assert "--since" in done.stderr
