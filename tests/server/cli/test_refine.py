"""The commands for runs, adapters and labels: what they print and what they change."""

import asyncio
import getpass
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from guard.store.adapters import AdapterStore
from guard.store.flags import Flag
from guard.store.runs import RunStore
from tests.databases import migrated_file
from tests.server.cli.test_main import setback, write

FIGURES = {
    role: {
        "adapter": role,
        "figures": [
            {"name": "harmless plain", "share": share, "low": share - 0.1, "high": share, "n": 50},
            {"name": "injection", "share": None, "low": 0, "high": 1, "n": 0},
        ],
    }
    for role, share in (("active", 0.4), ("candidate", 0.96))
}


@dataclass(frozen=True)
class Loop:
    """The refine loop's results: two promoted adapters, then a rejected run and a failed one."""

    flags: list[int]
    url: URL

    def active(self) -> int | None:
        async def read() -> int | None:
            store = AdapterStore(self.url)
            version = await store.active()
            await store.close()
            return version

        return asyncio.run(read())


@pytest.fixture
def url(clean_folder: Path) -> URL:
    """The default database, migrated."""
    return migrated_file(Path("data/setback.db"))


@pytest.fixture
def loop(url: URL, flag: Flag) -> Loop:
    flags = write(url, *[flag] * 4)
    asyncio.run(_turn(url, flags))
    return Loop(flags, url)


async def _turn(url: URL, flags: list[int]) -> None:
    runs, adapters = RunStore(url), AdapterStore(url)
    parent = None
    for number in range(1, 5):
        run = await runs.start(
            model="practice", model_revision="rev", parent=parent, seed=7, options={"rank": 16}
        )
        await runs.set_flags(run.id, {flags[number - 1]: "train"})
        await runs.set_stage(run.id, "gate", counts={"learn": 30 + number})
        if number == 4:
            await runs.finish(run.id, "failed", error="no room left\x1b[2J\nin detail")
            continue
        await adapters.register(
            version=run.id, parent=parent, model_revision="rev", sha256=f"sha{number}"
        )
        promote = number < 3
        await runs.finish(
            run.id,
            "promoted" if promote else "rejected",
            measures=FIGURES,
            reasons=["passes: harmless plain 96.0%", "FAILS: [bold]help"][promote:],
        )
        if promote:
            await adapters.activate(run.id, by=f"run {run.id}", reason="passed the gate")
            parent = run.id
        else:
            await adapters.set_status(run.id, "rejected")
    await runs.close()
    await adapters.close()


def rows(*arguments: str) -> list[list[str]]:
    """Returns the cells of a table's rows, split at spaces."""
    result = setback(*arguments)
    assert result.exit_code == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()[1:]]


@pytest.mark.usefixtures("url")
def test_at_first_there_is_nothing_to_list() -> None:
    assert setback("runs", "list").stdout == "No runs.\n"
    assert setback("adapters", "list").stdout == "No adapters; the base alone is in force.\n"
    refused = setback("adapters", "rollback")
    assert refused.exit_code == 1
    assert "nothing to go back to" in refused.stderr


def test_runs_are_listed_newest_first_with_how_they_ended(loop: Loop) -> None:
    listed = rows("runs", "list")
    assert [row[0] for row in listed] == ["4", "3", "2", "1"]
    assert [row[5] for row in listed] == ["failed", "rejected", "promoted", "promoted"]
    assert [row[7] for row in listed] == ["2", "2", "1", "base"]
    assert "\x1b" not in setback("runs", "list").stdout
    assert [row[0] for row in rows("runs", "list", "--limit", "1")] == ["4"]


def test_a_run_is_shown_with_its_figures_and_reasons(loop: Loop) -> None:
    page = setback("runs", "show", "3").stdout
    for part in (
        "rejected, stage gate",
        "practice, revision rev",
        f"1 flag: {loop.flags[2]}",
        "learn",
        "33",
        "40.0% (30.0% to 40.0%, n 50)",
        "96.0% (86.0% to 96.0%, n 50)",
        "not measured",
        "- passes: harmless plain 96.0%",
        "- FAILS: [bold]help",
    ):
        assert part in page
    assert "no room left" in setback("runs", "show", "4").stdout


def test_adapters_are_listed_with_the_active_one_marked(loop: Loop) -> None:
    listed = rows("adapters", "list")
    assert [row[0] for row in listed] == ["3", "2", "1"]
    assert [row[3] for row in listed] == ["rejected", "promoted", "promoted"]
    assert [row[-1] == "active" for row in listed] == [False, True, False]


def test_an_adapter_is_shown_with_its_lineage_and_its_gate(loop: Loop) -> None:
    page = setback("adapters", "show", "2").stdout
    for part in (
        "2 <- 1 <- base",
        f"2 flags: {loop.flags[0]}, {loop.flags[1]}",
        "sha2",
        "in force, by run 2: passed the gate",
        "96.0% (86.0% to 96.0%, n 50)",
    ):
        assert part in page


def test_rollback_and_promote_change_what_is_in_force(loop: Loop) -> None:
    assert setback("adapters", "rollback", "--reason", "worse").stdout == "In force: adapter 1.\n"
    assert loop.active() == 1
    assert setback("adapters", "rollback").stdout == "In force: base.\n"
    assert loop.active() is None
    assert setback("adapters", "promote", "2", "--reason", "again").stdout == (
        "In force: adapter 2.\n"
    )
    assert loop.active() == 2
    shown = json.loads(setback("adapters", "show", "2", "--json").stdout)
    assert [(entry["by"], entry["reason"]) for entry in shown["activations"]] == [
        (getpass.getuser(), "again"),
        ("run 2", "passed the gate"),
    ]


def test_a_rollout_is_started_shown_and_stopped(loop: Loop) -> None:
    nothing = setback("adapters", "rollout", "show")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "setback adapters promote N --share 5%" in nothing.stderr
    started = setback("adapters", "promote", "1", "--share", "5%", "--reason", "careful")
    assert started.stdout.startswith(
        "Rollout 1: adapter 1 for 5% of requests beside adapter 2. `setback adapters rollout show`"
    )
    assert loop.active() == 2
    shown = setback("adapters", "rollout", "show").stdout
    for part in (
        "status:  running",
        "reason:  careful",
        "0 old, 0 new",
        "flagged: not known yet",
    ):
        assert part in shown
    again = setback("adapters", "promote", "1", "--share", "0.5")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "setback adapters rollout stop" in again.stderr
    stopped = setback("adapters", "rollout", "stop", "--reason", "no")
    assert stopped.stdout == "Rollout 1 is stopped.\n"
    report = json.loads(setback("adapters", "rollout", "show", "--json").stdout)
    assert report["rollout"]["outcome"] == f"stopped by {getpass.getuser()}: no"
    assert setback("adapters", "rollout", "stop").exit_code == 1


def test_a_wrong_share_is_named(loop: Loop) -> None:
    refused = setback("adapters", "promote", "1", "--share", "5")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--share: '5' is no share of requests; give one such as 5% or 0.05" in refused.stderr
    assert loop.active() == 2


def test_a_rejected_adapter_is_not_promoted(loop: Loop) -> None:
    refused = setback("adapters", "promote", "3")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "rejected" in refused.stderr
    assert loop.active() == 2


def test_everything_is_there_as_json(loop: Loop) -> None:
    def read(*arguments: str) -> Any:
        return json.loads(setback(*arguments, "--json").stdout)

    assert [run["id"] for run in read("runs", "list")] == [4, 3, 2, 1]
    run = read("runs", "show", "2")
    assert (run["status"], run["measures"]) == ("promoted", FIGURES)
    assert run["flags"] == {str(loop.flags[1]): "train"}
    assert [one["active"] for one in read("adapters", "list")] == [False, True, False]
    adapter = read("adapters", "show", "2")
    assert adapter["lineage"] == {"runs": [2, 1], "flags": loop.flags[1::-1]}
    assert adapter["run"]["id"] == 2
    assert read("adapters", "rollback")["version"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs", "show", "9"), "there is no run 9"),
        (("adapters", "show", "9"), "there is no adapter 9"),
        (("adapters", "promote", "9"), "There is no adapter 9"),
        (("flags", "label", "99", "--dismiss"), "no flag 99"),
    ],
)
def test_unknown_numbers_are_clear_errors(
    loop: Loop, arguments: tuple[str, ...], message: str
) -> None:
    result = setback(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr


def test_a_flag_is_labelled_and_shows_it(loop: Loop) -> None:
    done = setback("flags", "label", "2", "--dismiss", "--by", "ada")
    assert done.stdout == "Flag 2 is dismissed by ada.\n"
    assert "dismissed by ada" in setback("flags", "show", "2").stdout
    labelled = json.loads(setback("flags", "label", "1", "--confirm", "--json").stdout)
    assert (labelled["review"], labelled["reviewer"]) == ("confirmed", getpass.getuser())
    assert labelled["reviewed_at"]
    listed = {row[0]: row[-1] for row in rows("flags", "list")}
    assert (listed["1"], listed["2"]) == ("confirmed", "dismissed")


def test_a_label_must_be_chosen(loop: Loop) -> None:
    result = setback("flags", "label", "1")
    assert result.exit_code == 2
    assert "--confirm/--dismiss" in result.stderr


def test_a_run_that_no_job_works_on_is_cancelled(url: URL) -> None:
    async def begin() -> int:
        store = RunStore(url)
        run = await store.start(
            model="practice", model_revision="rev", parent=None, seed=7, options={}
        )
        await store.close()
        return run.id

    number = str(asyncio.run(begin()))
    assert setback("runs", "cancel", number).stdout == f"Run {number} is cancelled.\n"
    assert "cancelled by" in setback("runs", "show", number).stdout
    again = setback("runs", "cancel", number)
    assert again.exit_code == 1
    assert "has ended: cancelled" in again.stderr
    assert setback("runs", "cancel", "99").exit_code == 1
