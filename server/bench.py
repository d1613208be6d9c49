"""`setback bench`: what the guard costs, as a ratio to bare vLLM on the same machine in the same
run. Owns the two servers, the order of the rounds and the table. The load is vLLM's own bench
client's, and so are its figures.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

from refine.practice.integrity import MODEL_NAME
from refine.practice.recipe import MODEL_DIR
from refine.practice.world import Kind, requests

_START_UP_S = 600
_SERVER = "import sys; from server.bench import serve_bare; serve_bare(sys.argv[1:])"
_CLIENT = (
    "import argparse, sys; from vllm.benchmarks import serve; "
    "parser = argparse.ArgumentParser(); serve.add_cli_args(parser); "
    "serve.main(parser.parse_args(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Load:
    """One load: `clients` at once ask for `output_tokens` each, past any end mark."""

    clients: int
    output_tokens: int
    requests: int
    stream: bool


@dataclass(frozen=True)
class Round:
    """Both servers under the same load, one right after the other: requests per second."""

    bare: float
    guarded: float

    @property
    def ratio(self) -> float:
        """Guarded to bare."""
        return self.guarded / self.bare


def bench(load: Load, rounds: int) -> list[Round]:
    """Starts bare vLLM and the guarded server on the practice model, and loads them in turn.

    A first round warms both up and is not counted.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dataset = _dataset(folder, load)
        bare = stack.enter_context(_server(folder, "bare", [sys.executable, "-c", _SERVER]))
        setback = str(Path(sys.executable).with_name("setback"))
        environment = {"DATABASE_URL": f"sqlite:///{folder}/flags.db"}
        subprocess.run(
            [setback, "db", "upgrade"], env=os.environ | environment, check=True, stdout=-3
        )
        guarded = stack.enter_context(_server(folder, "guarded", [setback, "serve"], environment))
        measured = []
        for number in range(rounds + 1):
            # Turn about, so that a machine that slows down slows both.
            order = (bare, guarded) if number % 2 else (guarded, bare)
            rates = {url: _throughput(folder, dataset, url, load, number) for url in order}
            measured.append(Round(rates[bare], rates[guarded]))
        return measured[1:]


def print_rounds(load: Load, measured: Sequence[Round]) -> None:
    """The rounds as a table, with the median and the spread of the ratio."""
    how = "streamed" if load.stream else "plain"
    table = Table(
        "Round", "Bare, requests/s", "Guarded, requests/s", "Guarded to bare",
        title=f"{load.clients} clients, {load.output_tokens} output tokens, {how}",
    )  # fmt: skip
    for number, each in enumerate(measured, 1):
        table.add_row(str(number), f"{each.bare:.2f}", f"{each.guarded:.2f}", f"{each.ratio:.3f}")
    ratios = [each.ratio for each in measured]
    table.add_section()
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    table.add_row("median", "", "", spread)
    Console().print(table)


def serve_bare(arguments: Sequence[str]) -> None:
    """vLLM alone, with the engine options that `setback serve` gives it."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server

    from server.serve import parse

    options = parse(arguments)
    options.middleware = []
    options.scheduler_cls = None
    options.model = options.model_tag
    uvloop.run(run_server(options))


def _dataset(folder: Path, load: Load) -> Path:
    """Everyday practice requests, one JSON line each, as the bench client reads them."""
    path = folder / "requests.jsonl"
    asked = requests(Kind.EVERYDAY, "train", load.requests)
    lines = [json.dumps({"prompt": request.messages[-1]["content"]}) for request in asked]
    path.write_text("\n".join(lines))
    return path


@contextmanager
def _server(
    folder: Path, name: str, command: list[str], environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A server's URL, from ready to stopped; its log is shown when it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=os.environ | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(f"{url}/{'ready' if environment else 'health'}", process, log)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_UP_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(url):
                return
        except (URLError, ConnectionError):
            time.sleep(0.2)
    sys.exit(f"setback: a server did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _throughput(folder: Path, dataset: Path, url: str, load: Load, seed: int) -> float:
    """Requests per second of one run of the bench client."""
    options = {
        "--backend": "openai-chat",
        "--base-url": url,
        "--endpoint": "/v1/chat/completions",
        "--model": MODEL_NAME,
        "--tokenizer": str(MODEL_DIR),
        "--dataset-name": "custom",
        "--dataset-path": str(dataset),
        "--custom-output-len": str(load.output_tokens),
        "--num-prompts": str(load.requests),
        "--max-concurrency": str(load.clients),
        "--temperature": "0",
        "--seed": str(seed),
        "--result-dir": str(folder),
        "--result-filename": "result.json",
    }
    flags = ["--ignore-eos", "--save-result", "--disable-tqdm", "--skip-chat-template"]
    flags += [] if load.stream else ["--no-stream"]
    pairs = [word for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, *pairs, *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"setback: the bench client failed:\n{done.stderr[-4000:]}")
    result = json.loads((folder / "result.json").read_text())
    if result["completed"] != load.requests:
        sys.exit(f"setback: only {result['completed']} of {load.requests} requests were answered")
    return float(result["request_throughput"])
