"""`setback bench`: what the guard costs, as a ratio to bare vLLM on the same machine in the same
run. Bare is vLLM without any plugin. Owns the two servers, what is asked and the order of the
rounds. The load is load.py's, tables and plot are report.py's.
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

from server.bench.report import Cell, Figures
from server.launch.models import NamedModel
from server.settings import load_settings

if TYPE_CHECKING:
    from server.bench.load import Load

_START_UP_S = 600
_ADAPTER = "bench"
_SERVER = "import sys; from server.bench.measure import serve_bare; serve_bare(sys.argv[1:])"
_MOST_PROMPTS = 1500
_SPARE = 1.25
"""More than are needed, for some are flagged."""

_TURNS_OF_TOKENS = 1024
_FEWEST_TURNS = 4
_VERDICT_TOKENS = 128
"""Verdicts in words end earlier by themselves."""

_CACHED = "critique tokens from the cache, %"
_CRITIQUE_TOKENS = "setback_critique_tokens_total"


class BenchKind(StrEnum):
    """What is asked: whole answers, streamed ones, or moderations, which bare vLLM gives as a
    verdict in words."""

    PLAIN = "plain"
    STREAMED = "streamed"
    MODERATION = "moderation"


@dataclass(frozen=True)
class Plan:
    """Every kind with every number of clients and, but for moderation, of output tokens.

    model: what both servers serve. rounds: that are counted, of each. adapter: whose answers are
    measured, the base's if none. repaired: bare vLLM gets our repairs of its CPU backend, so that
    the guard alone is compared. past_end: answers go on past their natural end, in noise, so that
    all have the most tokens; else they end by themselves or there.
    """

    model: NamedModel
    kinds: Sequence[BenchKind]
    clients: Sequence[int]
    output_tokens: Sequence[int]
    rounds: int
    adapter: Path | None = None
    repaired: bool = False
    past_end: bool = False

    @property
    def served_as(self) -> str:
        """Whose answers are asked for."""
        return _ADAPTER if self.adapter else self.model.served_as

    @property
    def title(self) -> str:
        """What is compared with what."""
        served = f"adapter {self.adapter.name}" if self.adapter else self.model.name
        length = ", all of full length" if self.past_end else ""
        bare = "with our repairs" if self.repaired else "as it comes"
        return f"{served}{length}; bare is vLLM {bare}"

    @property
    def options(self) -> list[str]:
        """What both servers are started with."""
        adapter = ["--lora-modules", f"{_ADAPTER}={self.adapter}"] if self.adapter else []
        return [self.model.name, *adapter]

    @property
    def loads(self) -> Iterator[tuple[BenchKind, int, int]]:
        """Kind, clients and output tokens, 0 for moderation."""
        for kind in self.kinds:
            for tokens in (0,) if kind is BenchKind.MODERATION else self.output_tokens:
                for clients in self.clients:
                    yield kind, clients, tokens


def bench(plan: Plan) -> Iterator[Cell]:
    """Starts bare vLLM and the guarded server, loads them in turn and yields each load's figures as
    it is done. Moderations are of the base in any case.

    Asked are everyday requests whose answers the guard lets out unchanged: what a flag costs, which
    is recorded and rewritten, is not in the figures.
    Raises LoadFailed when a request was not answered, and ValueError for a model that cannot be
    made ready. SIGTERM ends the servers too.
    """
    signal.signal(signal.SIGTERM, _leave)
    tokenizer = plan.model.prepare(load_settings().models_dir)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = {} if plan.repaired else {"VLLM_PLUGINS": ""}
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


def _load(plan: Plan, tokenizer: Path, clients: int, tokens: int) -> "Load":
    from server.bench.load import Load

    requests, base = clients * _turns(tokens), plan.model.served_as
    if not tokens:
        return Load(base, tokenizer, clients, _VERDICT_TOKENS, requests, past_end=False)
    return Load(plan.served_as, tokenizer, clients, tokens, requests, past_end=plan.past_end)


def _rounds(
    kind: BenchKind, load: "Load", count: int, dataset: Path, bare: str, guarded: str
) -> Sequence[tuple[Figures, Figures]]:
    """A first round warms up and is not counted."""
    from server.bench import load as client

    ways = {
        BenchKind.PLAIN: (client.PLAIN, client.PLAIN),
        BenchKind.STREAMED: (client.STREAMED, client.STREAMED),
        BenchKind.MODERATION: (client.VERDICT, client.MODERATION),
    }
    asking = dict(zip((bare, guarded), ways[kind], strict=True))
    measured = []
    for number in range(count + 1):
        # Turn about, so that a machine that slows down slows both.
        order = (bare, guarded) if number % 2 else (guarded, bare)
        salt = uuid4().hex
        before = _critique_tokens(guarded)
        found = {url: client.run_load(load, asking[url], url, dataset, salt) for url in order}
        read = _critique_tokens(guarded) - before
        # Moderations are no critiques of answers.
        cached = {_CACHED: 100 * read["cached"] / read.total()} if read else {}
        measured.append((found[bare], found[guarded] | cached))
    return measured[1:]


def _critique_tokens(guarded: str) -> Counter[str]:
    """Tokens of all critiques so far, by where they came from."""
    from prometheus_client.parser import text_string_to_metric_families

    with urlopen(f"{guarded}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return Counter(
        {s.labels["source"]: int(s.value) for s in samples if s.name == _CRITIQUE_TOKENS}
    )


def _turns(tokens: int) -> int:
    """How often each client asks in a round."""
    return max(_FEWEST_TURNS, _TURNS_OF_TOKENS // (tokens or _VERDICT_TOKENS))


def serve_bare(arguments: Sequence[str]) -> None:
    """vLLM alone, with the engine options and in the processes that `setback serve` gives it."""
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


def _dataset(folder: Path, guarded: str, plan: Plan, tokens: int) -> Path:
    """As many requests as the largest load needs, one JSON line each, as the bench client reads
    them. Raises LoadFailed when the guard lets the answer to none of them out."""
    from server.bench.load import LoadFailed, passing

    needed = _turns(tokens) * max(plan.clients)
    drawn = plan.model.everyday(min(_MOST_PROMPTS, int(needed * _SPARE)))
    distinct = kept = list(dict.fromkeys(drawn))
    if tokens:
        kept = passing(guarded, plan.served_as, distinct, tokens, past_end=plan.past_end)
    if not kept:
        raise LoadFailed(f"The guard let none of {len(distinct)} answers out unchanged")
    path = folder / f"requests-{tokens}.jsonl"
    lines = (json.dumps({"prompt": prompt}) for prompt in islice(cycle(kept), needed))
    path.write_text("\n".join(lines))
    return path


def _leave(number: int, _frame: FrameType | None) -> None:
    """Unwinds, so that the servers are stopped too."""
    raise SystemExit(128 + number)


@contextmanager
def _server(
    folder: Path, name: str, command: list[str], probed: str, environment: Mapping[str, str]
) -> Iterator[str]:
    """A server's URL, from when the path probed answers to its stop; its log is shown when it does
    not start."""
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
        _wait_until_ready(f"{url}/{probed}", process, log)
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
