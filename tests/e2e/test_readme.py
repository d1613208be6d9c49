"""Every command in the README and on the pages of docs/ runs: on SmolLM2, and those of the practice
page on the practice model. The answers shown are the answers given.

`refine.practice evaluate` runs in part and Python's answer is short, unless pytest is called with
`--full`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, SETBACK, Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1300)]

PAGES = {
    path.name: path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
SERVERS = {"practice.md": "server"}
"""The fixture whose server a page's commands are run against, where that is not SmolLM2's."""

ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str, page: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def run(script: list[str], server: Server) -> str:
    """Returns a command's output against the test's server. Fails with its error."""
    url = server.database.render_as_string(hide_password=False)
    done = subprocess.run(
        script,
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ANSWERED = ("README.md", "practice.md")
"""Pages that show a request with its answer; test_the_answer_shown_is_the_answer_given runs it."""
CHAT = "/v1/chat/completions"

# `make serve` is how the default server is started; all other blocks run against SmolLM2.
SHELL = [
    (name, block)
    for name, page in PAGES.items()
    for block in blocks("sh", page)
    if block.strip() != "make serve" and not (name in ANSWERED and CHAT in block)
]

EVALUATE = "refine.practice evaluate"
SHARE = "0.02"


def server_of(page: str, request: pytest.FixtureRequest) -> Server:
    """The server that a page's commands are run against."""
    server: Server = request.getfixturevalue(SERVERS.get(page, "smollm2"))
    return server


def run_shell(block: str, server: Server) -> str:
    command = block.replace(ADDRESS, server.base_url).replace(".venv/bin/setback", SETBACK)
    command = command.replace(".venv/bin/python", sys.executable)
    return run(["bash", "-euo", "pipefail", "-c", command], server)


@pytest.mark.parametrize(
    ("page", "block"), SHELL, ids=[f"{page} {block.splitlines()[0][:60]}" for page, block in SHELL]
)
def test_a_shell_block_runs(
    page: str, block: str, request: pytest.FixtureRequest, full: bool
) -> None:
    if not full:
        block = block.replace(EVALUATE, f"{EVALUATE} --share {SHARE}")
    assert run_shell(block, server_of(page, request)).strip()


def test_the_python_block_runs(smollm2: Server, full: bool) -> None:
    (block,) = (block for page in PAGES.values() for block in blocks("python", page))
    block = block.replace(ADDRESS, smollm2.base_url)
    if not full:
        block = block.replace("max_tokens=256", "max_tokens=32")
    output = run([sys.executable, "-c", block], smollm2)
    answer, flagged = output.strip().rsplit("\n", 1)
    assert answer
    assert flagged == "False"


@pytest.mark.parametrize("page", ANSWERED)
def test_the_answer_shown_is_the_answer_given(page: str, request: pytest.FixtureRequest) -> None:
    (shown,) = [json.loads(block) for block in blocks("json", PAGES[page])]
    (command,) = [block for block in blocks("sh", PAGES[page]) if CHAT in block]
    answer = json.loads(run_shell(command, server_of(page, request)))
    choice = shown["choices"][0]
    assert answer["choices"][0]["message"]["content"] == choice["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == choice["finish_reason"]
    result = shown["moderation"]["output"]["results"][0]
    assert (
        answer["moderation"]["output"]["results"][0]["categories"].items()
        >= result["categories"].items()
    )


@pytest.mark.full
def test_the_bench_command_measures_both_servers(tmp_path: Path) -> None:
    load = ["--kind", "streamed", "--clients", "2", "--output-tokens", "256", "--rounds", "1"]
    load += ["--kind", "moderation"]
    done = subprocess.run(
        [SETBACK, "bench", "practice", *load],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "data/bench/bench.json").read_text())
    streamed, moderation = report["cells"]
    ((bare, guarded),) = moderation["rounds"]
    assert min(bare["requests/s"], guarded["requests/s"]) > 0
    ((bare, guarded),) = streamed["rounds"]
    for name in ("requests/s", "tokens/s", "time to first token, p99, ms"):
        assert bare[name] > 0
        assert guarded[name] > 0
        assert name in done.stdout
    cached = "critique tokens from the cache, %"
    # The second verdict on a stream finds what the first one covered.
    assert 30 < guarded[cached] < 100
    assert f"{guarded[cached]:.2f}" in done.stdout
    row = f"| streamed | 2 | 256 | {bare['requests/s']:.1f} | {guarded['requests/s']:.1f} |"
    assert row in done.stdout
    assert report["machine"] in done.stdout
    assert (tmp_path / "data/bench/bench.png").stat().st_size > 1000


def test_a_bench_told_to_stop_stops_its_servers(tmp_path: Path) -> None:
    with subprocess.Popen([SETBACK, "bench", "practice"], cwd=tmp_path) as bench:
        while not (servers := started(bench.pid)):
            assert bench.poll() is None
            time.sleep(0.1)
        bench.terminate()
        assert bench.wait(60) == 128 + signal.SIGTERM
    assert not any(Path(f"/proc/{server}").exists() for server in servers)


def started(bench: int) -> list[str]:
    """Returns the process ids of its servers."""
    children = Path(f"/proc/{bench}/task/{bench}/children").read_text().split()
    return [pid for pid in children if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes()]
