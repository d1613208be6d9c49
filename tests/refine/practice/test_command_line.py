"""The command line: requests as JSON lines, and clear refusals."""

import json

import pytest
from typer.testing import CliRunner

from refine.practice.__main__ import app
from refine.practice.world import SPLITS, Kind, requests


@pytest.mark.parametrize("kind", list(Kind))
def test_requests_are_printed_as_json_lines(kind: Kind) -> None:
    result = CliRunner().invoke(app, ["requests", "--kind", kind, "-n", "7", "--seed", "2"])
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.output.splitlines()]
    expected = [list(request.messages) for request in requests(kind, "held-out", 7, seed=2)]
    assert [row["messages"] for row in rows] == expected
    assert {row["kind"] for row in rows} == {kind.value}


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_can_be_asked_for(split: str) -> None:
    result = CliRunner().invoke(app, ["requests", "--kind", "harmful", "--split", split, "-n", "2"])
    assert len(result.output.splitlines()) == 2


def test_an_unknown_split_is_refused_by_name() -> None:
    result = CliRunner().invoke(app, ["requests", "--kind", "harmful", "--split", "best"])
    assert result.exit_code == 2
    assert "'best' is not one of train" in result.output


@pytest.mark.parametrize("command", ["traffic", "guarded"])
def test_where_no_server_answers_the_command_says_so(command: str) -> None:
    # Port 1 is reserved, and nothing listens there.
    url = "http://127.0.0.1:1/v1"
    result = CliRunner().invoke(app, [command, "--base-url", url])
    assert result.exit_code == 1
    assert f"no server answers at {url}" in str(result.exception)
