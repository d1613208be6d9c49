"""`setback evaluate --benchmark`: sends public data sets through running servers. Owns its
arguments, progress bar and output. Does not compute figures (refine/benchmarks). Needs no database.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from refine.benchmarks import report as benchmark_report
from refine.benchmarks.benchmark import Plan, run_benchmark
from refine.benchmarks.formats import FORMATS, read_set
from refine.benchmarks.page import write
from refine.benchmarks.public_api import PublicApi, RequestRoute, ServerAddress
from refine.benchmarks.report import Result
from refine.benchmarks.rows import BenchmarkSet
from refine.options import RefineOptions
from server.cli.terminal import fail, print_json, printable, reported_errors
from server.settings import load_settings

_WORK_FOLDER = "benchmarks"


@dataclass(frozen=True)
class BenchmarkArguments:
    """The command-line arguments.

    benchmarks: NAME=PATH. servers: URL or NAME=URL; empty for refine.server_url. route: how
    requests are sent.
    """

    benchmarks: Sequence[str]
    servers: Sequence[str]
    limit: int | None
    concurrency: int
    route: RequestRoute
    max_tokens: int
    out: Path
    as_json: bool


def evaluate_benchmarks(arguments: BenchmarkArguments) -> None:
    """Measures every set on every server, and writes and prints the figures."""
    paths = [_benchmark(argument) for argument in dict.fromkeys(arguments.benchmarks)]
    with reported_errors():
        options = load_settings().refine
        servers = _servers(arguments.servers or [options.server_url])
        sets = [read_set(name, path) for name, path in paths]
        results = asyncio.run(_measure(servers, sets, arguments, options))
    about = {"time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **_identities(results)}
    written = write(arguments.out, results, about)
    if arguments.as_json:
        print_json(benchmark_report.as_json(results, about))
    else:
        # Both contain text that servers sent.
        typer.echo(printable("\n".join(f"{name}: {value}" for name, value in about.items())))
        typer.echo(printable(f"\n{benchmark_report.table(results)}\n"))
        typer.echo("Written: " + ", ".join(map(str, written)))
    failed = sum(result.run.failed for result in results)
    if failed:
        fail(f"{failed} rows have no verdict; run the command again to retry them", code=1)


def _benchmark(argument: str) -> tuple[str, Path]:
    name, separator, path = argument.partition("=")
    if not separator or name not in FORMATS:
        raise typer.BadParameter(
            f"{argument!r} is not NAME=PATH with one of the names {', '.join(FORMATS)}",
            param_hint="--benchmark",
        )
    return name, Path(path)


def _servers(argument: Sequence[str]) -> list[ServerAddress]:
    """Returns the servers in order. A server without a name is named by its URL."""
    servers = [_server(argument) for argument in dict.fromkeys(argument)]
    names = [server.name for server in servers]
    if len(set(names)) < len(names):
        raise typer.BadParameter("two servers have the same name", param_hint="--server")
    return servers


def _server(argument: str) -> ServerAddress:
    prefix, _, suffix = argument.partition("=")
    name, url = (prefix, suffix) if suffix and "://" not in prefix else (argument, argument)
    try:
        parsed = httpx.URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise typer.BadParameter(
            f"{argument!r} is not URL or NAME=URL with http:// or https://", param_hint="--server"
        )
    return ServerAddress(name, url.rstrip("/"))


async def _measure(
    servers: Sequence[ServerAddress],
    sets: Sequence[BenchmarkSet],
    arguments: BenchmarkArguments,
    options: RefineOptions,
) -> list[Result]:
    key = options.api_key.get_secret_value() if options.api_key else None
    plan = Plan(options.work_dir / _WORK_FOLDER, arguments.concurrency, arguments.limit)
    results = []
    with _progress() as progress:
        for server in servers:
            api = PublicApi(server, key, route=arguments.route, max_tokens=arguments.max_tokens)
            async with api:
                for benchmark in sets:
                    total = len(benchmark.sample(plan.limit))
                    task = progress.add_task(f"{server.name}  {benchmark.name}", total=total)

                    advance = partial(progress.advance, task)
                    results.append(Result(await run_benchmark(api, benchmark, plan, advance)))
    return results


def _progress() -> Progress:
    """Returns a progress bar on standard error: standard output is for the figures."""
    return Progress(
        # No markup: names come from the command line.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _identities(results: Sequence[Result]) -> dict[str, str]:
    """Returns each server's identity, or all of them if it changed between sets."""
    identities: dict[str, dict[str, None]] = {}
    for result in results:
        run = result.run
        identities.setdefault(run.address.name, {})[f"{run.address.url}, {run.identity}"] = None
    return {name: "; then ".join(states) for name, states in identities.items()}
