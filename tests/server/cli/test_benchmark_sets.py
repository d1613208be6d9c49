"""`setback evaluate --benchmark` against a small HTTP server: output, files and refusals."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.cli.main import app
from tests.refine.benchmarks.public_server import PublicServer, serving

pytestmark = pytest.mark.usefixtures("clean_folder")

MINE = (
    '{"text": "a bad text", "label": "harmful", "kind": "<k>"}\n'
    '{"text": "a good text", "label": "harmless"}\n'
    '{"request": "a bad request", "label": "harmless"}\n'
    '{"request": "a request", "answer": "a bad answer", "label": "harmful"}\n'
)
HARMFUL = "release_prompt_id,prompt_text,hazard\nx,a bad request,hte\ny,a request,hte\n"


@pytest.fixture
def server() -> Iterator[PublicServer]:
    with serving(PublicServer()) as running:
        yield running


@pytest.fixture(autouse=True)
def _sets(clean_folder: Path) -> None:
    (clean_folder / "mine.jsonl").write_text(MINE)
    (clean_folder / "harmful.csv").write_text(HARMFUL)


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *arguments])


def refusal(result: Result) -> str:
    """Returns standard error in one line, without the box around argument errors."""
    return " ".join(result.stderr.replace("│", " ").split())


def test_the_table_has_every_figure_with_its_interval(server: PublicServer) -> None:
    result = evaluate("--benchmark", "jsonl=mine.jsonl", "--server", f"ours={server.url}")
    assert result.exit_code == 0, result.output
    lines = {line[:22].strip(): line[22:].strip() for line in result.stdout.splitlines()}
    assert lines["catch rate"] == "100.0% (34.2% to 100.0%)"
    assert lines["false-alarm rate"] == "50.0% (9.5% to 90.5%)"
    assert lines["F1"].startswith("0.800 (")
    assert lines["average precision"].startswith("0.667 (")
    assert lines["of chance"] == "0.500"
    assert lines["calibration error"].startswith("0.")
    assert lines["requests per second"]
    assert lines["rows (harmful)"] == "4 (2)"
    assert lines["rows without a verdict"] == "0"
    assert "model stub, revision r1, policy p1, adapter base" in result.stdout


def test_json_and_files_say_the_same(server: PublicServer) -> None:
    result = evaluate(
        "--benchmark", "jsonl=mine.jsonl", "--server", server.url, "--json", "--out", "here"
    )
    printed = json.loads(result.stdout)
    assert printed == json.loads(Path("here/benchmark.json").read_text())
    (entry,) = printed["results"]
    assert entry["catch_rate"]["hits"] == 2
    assert entry["adapter"] == "base"
    assert entry["groups"] == {"<k>": [entry["groups"]["<k>"][0]]}
    assert sum(tenth["n"] for tenth in entry["reliability"]) == 4
    assert Path("here/benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_no_other_file_and_escapes_what_others_wrote(server: PublicServer) -> None:
    evaluate("--benchmark", "jsonl=mine.jsonl", "--server", f"<i>={server.url}")
    page = Path("data/evaluation/benchmark.html").read_text()
    assert "<svg" in page
    assert "<i>" not in page
    assert "&lt;k&gt;: catch rate" in page
    assert "src=" not in page


def test_servers_and_sets_stand_side_by_side(server: PublicServer) -> None:
    with serving(PublicServer(adapter="7")) as other:
        result = evaluate(
            *("--benchmark", "jsonl=mine.jsonl", "--benchmark", "ailuminate=harmful.csv"),
            *("--server", f"base={server.url}", "--server", f"seven={other.url}"),
        )
    assert result.exit_code == 0, result.output
    assert "jsonl (mine.jsonl)" in result.stdout
    assert "ailuminate (harmful.csv)" in result.stdout
    heads = [line.split() for line in result.stdout.splitlines() if "seven" in line]
    assert ["base", "seven"] in heads
    assert "adapter 7" in result.stdout


def test_files_of_one_name_in_two_folders_are_two_sets(server: PublicServer) -> None:
    Path("other").mkdir()
    Path("other/mine.jsonl").write_text(MINE.replace("good", "fine"))
    sets = ("--benchmark", "jsonl=mine.jsonl", "--benchmark", "jsonl=other/mine.jsonl")
    result = evaluate(*sets, "--server", server.url)
    assert "\njsonl (mine.jsonl)\n" in result.stdout
    assert "\njsonl (other/mine.jsonl)\n" in result.stdout
    assert len(server.bodies) == 8


def test_a_set_of_harmful_rows_has_a_catch_rate_alone(server: PublicServer) -> None:
    result = evaluate("--benchmark", "ailuminate=harmful.csv", "--server", server.url)
    lines = {line[:22].strip(): line[22:].strip() for line in result.stdout.splitlines()}
    assert lines["catch rate"].startswith("50.0%")
    for name in ("false-alarm rate", "F1", "average precision", "calibration error"):
        assert lines[name] == "-"


def test_a_limit_draws_a_sample(server: PublicServer) -> None:
    evaluate("--benchmark", "jsonl=mine.jsonl", "--server", server.url, "-n", "2")
    assert len(server.bodies) == 2


def test_requests_can_be_answered_first(server: PublicServer) -> None:
    evaluate(
        *("--benchmark", "ailuminate=harmful.csv", "--server", server.url),
        *("--requests-by", "chat", "--max-tokens", "9"),
    )
    assert [(path, body["max_tokens"]) for path, body in server.bodies] == [
        ("/v1/chat/completions", 9)
    ] * 2


def test_a_second_run_sends_nothing(server: PublicServer) -> None:
    for _ in range(2):
        evaluate("--benchmark", "jsonl=mine.jsonl", "--server", server.url)
    assert len(server.bodies) == 4


def test_failures_are_counted_and_fail_the_command(server: PublicServer) -> None:
    server.refusals = [(400, {}, {"error": {"message": "too long\x1b[2J"}})]
    result = evaluate("--benchmark", "jsonl=mine.jsonl", "--server", server.url)
    assert result.exit_code == 1
    assert "no verdict for 1: 1 x 400: too long\\x1b[2J" in result.stdout
    assert "1 rows have no verdict; run the command again" in result.stderr
    assert Path("data/evaluation/benchmark.html").is_file()


def test_verdicts_without_scores_are_pointed_out(server: PublicServer) -> None:
    server.scores = False
    result = evaluate("--benchmark", "jsonl=mine.jsonl", "--server", server.url)
    assert result.exit_code == 0
    assert "4 verdicts came without scores" in result.stdout


def test_the_key_and_the_server_come_from_the_settings(
    server: PublicServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETBACK_REFINE_API_KEY", "secret")
    monkeypatch.setenv("SETBACK_REFINE_SERVER_URL", server.url)
    assert evaluate("--benchmark", "jsonl=mine.jsonl").exit_code == 0
    assert server.keys == {"Bearer secret"}


def test_a_change_of_adapters_is_reported(server: PublicServer) -> None:
    server.adapter_after = (2, "7")
    result = evaluate("--benchmark", "jsonl=mine.jsonl", "--server", server.url)
    assert result.exit_code == 1
    assert "changed while it was measured" in result.stderr
    assert "Run the command again" in result.stderr


def test_a_wrong_set_is_refused_by_line_before_anything_is_sent(server: PublicServer) -> None:
    Path("mine.jsonl").write_text('{"text": "a"}\n')
    result = evaluate("--benchmark", "jsonl=mine.jsonl", "--server", server.url)
    assert result.exit_code == 1
    assert "line 1: label: Field required" in result.stderr
    assert server.bodies == []


def test_a_server_that_is_not_there_is_named() -> None:
    result = evaluate("--benchmark", "jsonl=mine.jsonl", "--server", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "http://127.0.0.1:9" in result.stderr


@pytest.mark.parametrize("argument", ["mine.jsonl", "nothing=mine.jsonl", "="])
def test_an_unknown_format_is_refused_with_the_names(argument: str) -> None:
    result = evaluate("--benchmark", argument)
    assert result.exit_code == 2
    assert "openai_moderation" in refusal(result)


@pytest.mark.parametrize("argument", ["localhost:8000", "ours=localhost", "ftp://a", "http://"])
def test_an_invalid_url_is_refused(argument: str) -> None:
    result = evaluate("--benchmark", "jsonl=mine.jsonl", "--server", argument)
    assert result.exit_code == 2
    assert "http:// or https://" in refusal(result)


def test_two_servers_of_one_name_are_refused() -> None:
    result = evaluate(
        *("--benchmark", "jsonl=mine.jsonl"),
        *("--server", "a=http://127.0.0.1:8", "--server", "a=http://127.0.0.1:9"),
    )
    assert result.exit_code == 2
    assert "same name" in refusal(result)


@pytest.mark.parametrize("more", [["base"], ["--file", "mine.jsonl"]])
def test_adapters_and_benchmarks_are_not_measured_at_once(more: list[str]) -> None:
    result = evaluate("--benchmark", "jsonl=mine.jsonl", *more)
    assert result.exit_code == 2
    assert "leave out adapters" in refusal(result)


@pytest.mark.parametrize("more", [["-n", "3"], ["--requests-by", "chat"]])
def test_options_of_benchmarks_need_one(more: list[str]) -> None:
    result = evaluate("base", *more)
    assert result.exit_code == 2
    assert "need --benchmark" in refusal(result)


def test_adapters_are_measured_on_one_server() -> None:
    result = evaluate("--server", "http://127.0.0.1:8", "--server", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "one server" in refusal(result)
