"""`setback bench`: the guard's cost as a ratio to bare vLLM (without plugins) on the same machine.
Owns the two servers, the requests and the order of the rounds. Does not send the load (load.py) or
print results (report.py).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle, islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import psutil

from guard.vllm.cpu import FEW_PROCESSORS, PLUGIN
from server.bench.report import Cell, Figures
from server.launch.models import NamedModel
from server.settings import load_settings

if TYPE_CHECKING:
    from server.bench.load import LoadSettings

_START_UP_S = 600
_STOP_S = 20
_ADAPTER = "bench"
_SERVER = "import sys; from server.bench.measure import serve_bare; serve_bare(sys.argv[1:])"
_MAX_PROMPTS = 1500
_EXTRA_PROMPTS = 1.25
"""More prompts than needed, since some answers are flagged."""

_TOKENS_PER_CLIENT = 1024
_MIN_REQUESTS_PER_CLIENT = 4
_VERDICT_TOKENS = 128
"""Enough: verdicts in words end earlier."""

_CACHED = "critique tokens from the cache, %"
_CRITIQUE_TOKENS = "setback_critique_tokens_total"


class BenchKind(StrEnum):
    """What is requested: whole answers, streamed answers, or moderations. Bare vLLM answers the
    last with a verdict in words."""

    PLAIN = "plain"
    STREAMED = "streamed"
    MODERATION = "moderation"


@dataclass(frozen=True)
class BenchPlan:
    """Every kind with every number of clients and, except for moderations, of output tokens.

    model: what both servers serve. rounds: counted rounds of each load. adapter: which one answers;
    None for the base model. patched: bare vLLM gets our patches of its CPU backend, so that only
    the guard's cost is measured. ignore_eos: answers go on past their end to the full length.
    vllm_options: of both servers, as on a command line.
    """

    model: NamedModel
    kinds: Sequence[BenchKind]
    clients: Sequence[int]
    output_tokens: Sequence[int]
    rounds: int
    adapter: Path | None = None
    patched: bool = False
    ignore_eos: bool = False
    vllm_options: Sequence[str] = ()

    @property
    def served_model_name(self) -> str:
        """The model name in requests."""
        return _ADAPTER if self.adapter else self.model.served_model_name

    @property
    def title(self) -> str:
        """What is compared."""
        served = f"adapter {self.adapter.name}" if self.adapter else self.model.name
        length = ", all of full length" if self.ignore_eos else ""
        bare = "with our patches" if self.patched else "unpatched"
        return f"{served}{length}; bare is vLLM {bare}"

    @property
    def options(self) -> list[str]:
        """The options of both servers."""
        adapter = ["--lora-modules", f"{_ADAPTER}={self.adapter}"] if self.adapter else []
        return [self.model.name, *adapter, *self.vllm_options]

    @property
    def loads(self) -> Iterator[tuple[BenchKind, int, int]]:
        """Yields kind, clients and output tokens (0 for moderations)."""
        for kind in self.kinds:
            for tokens in (0,) if kind is BenchKind.MODERATION else self.output_tokens:
                for clients in self.clients:
                    yield kind, clients, tokens


def bench(plan: BenchPlan) -> Iterator[Cell]:
    """Starts bare vLLM and the guarded server, loads them in turns and yields each load's figures.
    Moderations always use the base model.

    The requests are everyday ones whose answers the guard releases unchanged: the cost of flagged
    answers, which are recorded and revised, is not measured.
    Raises LoadFailed when a request was not answered, and ValueError when the model cannot be
    prepared. SIGTERM stops the servers too.
    """
    signal.signal(signal.SIGTERM, _exit_on_signal)
    tokenizer = plan.model.prepare(load_settings().models_dir)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = _patches() if plan.patched else {"VLLM_PLUGINS": ""}
        command = [sys.executable, "-c", _SERVER, *plan.options]
        bare = stack.enter_context(_server(folder, "bare", command, "health", environment))
        setback = str(Path(sys.executable).with_name("setback"))
        environment = {"DATABASE_URL": f"sqlite:///{folder}/flags.db"}
        subprocess.run(
            [setback, "db", "upgrade"], env=os.environ | environment, check=True, stdout=-3
        )
        command = [setback, "serve", *plan.options]
        guarded = stack.enter_context(_server(folder, "guarded", command, "ready", environment))
        datasets = {
            tokens: _dataset(folder, guarded, plan, tokens)
            for tokens in sorted({tokens for _, _, tokens in plan.loads})
        }
        for kind, clients, tokens in plan.loads:
            load = _load(plan, tokenizer, clients, tokens)
            rounds = _rounds(kind, load, plan.rounds, datasets[tokens], bare, guarded)
            yield Cell(kind.value, clients, tokens, rounds)


def _patches() -> dict[str, str]:
    """Returns the environment that gives bare vLLM our patches and as many processors."""
    few = len(os.sched_getaffinity(0)) <= FEW_PROCESSORS
    return {"VLLM_PLUGINS": PLUGIN, **({"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"} if few else {})}


def _load(plan: BenchPlan, tokenizer: Path, clients: int, tokens: int) -> "LoadSettings":
    from server.bench.load import LoadSettings

    requests, base = clients * _requests_per_client(tokens), plan.model.served_model_name
    if not tokens:
        return LoadSettings(base, tokenizer, clients, _VERDICT_TOKENS, requests, ignore_eos=False)
    return LoadSettings(
        plan.served_model_name, tokenizer, clients, tokens, requests, ignore_eos=plan.ignore_eos
    )


def _rounds(
    kind: BenchKind, load: "LoadSettings", count: int, dataset: Path, bare: str, guarded: str
) -> Sequence[tuple[Figures, Figures]]:
    """Returns the figures of each round, after a first round that only warms up."""
    from server.bench import load as client

    request_types = {
        BenchKind.PLAIN: (client.PLAIN, client.PLAIN),
        BenchKind.STREAMED: (client.STREAMED, client.STREAMED),
        BenchKind.MODERATION: (client.VERDICT, client.MODERATION),
    }
    request_type = dict(zip((bare, guarded), request_types[kind], strict=True))
    measured = []
    for number in range(count + 1):
        # Alternate, so that a machine that slows down affects both.
        order = (bare, guarded) if number % 2 else (guarded, bare)
        salt = uuid4().hex
        before = _critique_tokens(guarded)
        figures = {
            url: client.run_load(load, request_type[url], url, dataset, salt) for url in order
        }
        critique_tokens = _critique_tokens(guarded) - before
        # Moderations read no critiques of answers.
        cached = (
            {_CACHED: 100 * critique_tokens["cached"] / critique_tokens.total()}
            if critique_tokens
            else {}
        )
        measured.append((figures[bare], figures[guarded] | cached))
    return measured[1:]


def _critique_tokens(guarded: str) -> Counter[str]:
    """Returns the tokens of all critiques so far, by source."""
    from prometheus_client.parser import text_string_to_metric_families

    with urlopen(f"{guarded}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return Counter(
        {s.labels["source"]: int(s.value) for s in samples if s.name == _CRITIQUE_TOKENS}
    )


def _requests_per_client(tokens: int) -> int:
    """Returns how many requests each client sends in a round."""
    return max(_MIN_REQUESTS_PER_CLIENT, _TOKENS_PER_CLIENT // (tokens or _VERDICT_TOKENS))


def serve_bare(arguments: Sequence[str]) -> None:
    """Serves vLLM alone, with the same engine options and processes as `setback serve`."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server

    from server.launch.processes import share_process
    from server.launch.serve import parse, prepare_model

    environment = dict(os.environ)
    options = parse(arguments)
    prepare_model(options)
    share_process(options, environment)
    options.middleware = []
    options.scheduler_cls = None
    options.model = options.model_tag
    uvloop.run(run_server(options))


def _dataset(folder: Path, guarded: str, plan: BenchPlan, tokens: int) -> Path:
    """Writes as many requests as the largest load needs, in the benchmark client's JSON lines.
    Raises LoadFailed when the guard releases none of the answers unchanged."""
    from server.bench.load import LoadFailed, passing

    count = _requests_per_client(tokens) * max(plan.clients)
    drawn = plan.model.everyday(min(_MAX_PROMPTS, int(count * _EXTRA_PROMPTS)))
    distinct = prompts = list(dict.fromkeys(drawn))
    if tokens:
        prompts = passing(
            guarded, plan.served_model_name, distinct, tokens, ignore_eos=plan.ignore_eos
        )
    if not prompts:
        raise LoadFailed(f"The guard released none of {len(distinct)} answers unchanged")
    path = folder / f"requests-{tokens}.jsonl"
    lines = (json.dumps({"prompt": prompt}) for prompt in islice(cycle(prompts), count))
    path.write_text("\n".join(lines))
    return path


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    """Unwinds the stack, so that the servers are stopped."""
    raise SystemExit(128 + number)


@contextmanager
def _server(
    folder: Path, name: str, command: list[str], ready_path: str, environment: Mapping[str, str]
) -> Iterator[str]:
    """Yields a server's URL once `ready_path` answers, and stops it afterwards. Prints its log when
    it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(f"{url}/{ready_path}", process, log)
        yield url
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends a server and its engine."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        # vLLM can miss the signal while it starts its engine.
        server = psutil.Process(process.pid)
        for one in (*server.children(recursive=True), server):
            one.kill()
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
