"""`setback evaluate`: measures adapters side by side on the same held-out sets, or sends public
sets through running servers. Owns the command's arguments, and its output for adapters. Does not
measure (refine/evaluation), load the sets (refine/evaluation_data.py) or send public sets
(benchmark_sets.py).
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from refine.benchmarks.public_api import RequestRoute
from refine.evaluation import report
from refine.evaluation.measure import Evaluator
from refine.evaluation.measures import Measures
from refine.evaluation_data import load_evaluation_data
from refine.served import Adapter, ServedInfo
from server.cli.terminal import AsJson, print_json, reported_errors
from server.jobs.critics import known_critics
from server.jobs.model_access import served_model
from server.settings import Settings, load_settings, with_refine

_ACTIVE: Final = "active"
_BASE: Final = "base"
_DEFAULT_OUT = Path("data/evaluation")


def evaluate(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[base|active|N]...", help="What to measure; default: base and active."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines: {"request" or "messages", "answer" (optional), "label": "harmful" or '
            '"harmless"}; measured in addition to the bundled sets.'
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for evaluation.json, .png and .html; or benchmark.*."),
    ] = _DEFAULT_OUT,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]URL",
            help="The running server; overrides refine.server_url. With --benchmark, repeat the "
            "option to compare several.",
        ),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Send a public set through the server's public API instead of measuring "
            "adapters; repeatable. Names and formats: docs/evaluation.md.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="Benchmarks: use a fixed sample of each set."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=1024, help="Benchmarks: concurrent requests.")
    ] = 16,
    requests_by: Annotated[
        RequestRoute,
        typer.Option(
            help="Benchmarks: judge requests as texts (moderations), or have them answered (chat)."
        ),
    ] = "moderations",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Benchmarks: tokens per answer with --requests-by chat.")
    ] = 128,
    as_json: AsJson = False,
) -> None:
    """Measure adapters side by side, or with --benchmark running servers on public sets."""
    if benchmark:
        if adapters or file:
            raise typer.BadParameter(
                "it measures what a server serves, on the sets it names; leave out adapters and "
                "--file, and serve each adapter to compare",
                param_hint="--benchmark",
            )
        # Imported here because it imports numpy, which other commands do not need.
        from server.cli.benchmark_sets import BenchmarkArguments, evaluate_benchmarks

        arguments = BenchmarkArguments(
            benchmark, server or (), limit, concurrency, requests_by, max_tokens, out, as_json
        )
        evaluate_benchmarks(arguments)
    elif limit is not None or requests_by != "moderations":
        raise typer.BadParameter("--limit and --requests-by need --benchmark")
    else:
        evaluate_adapters(adapters or (_BASE, _ACTIVE), file, out, server or (), as_json)


def evaluate_adapters(
    names: Sequence[str], file: Path | None, out: Path, servers: Sequence[str], as_json: bool
) -> None:
    """Measures adapters on the gate's sets, through one server's refine routes."""
    if len(servers) > 1:
        raise typer.BadParameter("adapters are measured on one server", param_hint="--server")
    server = next(iter(servers), None)
    adapters = [_adapter(name) for name in names]
    with reported_errors():
        settings = with_refine(load_settings(), server_url=server, gate_file=file)
        measured, about = asyncio.run(_evaluate(settings, adapters))
    written = report.write(out, measured, about)
    if as_json:
        print_json(report.as_json(measured, about))
        return
    typer.echo("\n".join(f"{name}: {value}" for name, value in about.items()))
    typer.echo(f"\n{report.table(measured)}\n")
    typer.echo("Written: " + ", ".join(map(str, written)))


def _adapter(name: str) -> Adapter:
    if name == _ACTIVE:
        return _ACTIVE
    if name == _BASE:
        return _BASE
    if name.isascii() and name.isdecimal() and int(name) > 0:
        return int(name)
    raise typer.BadParameter(
        f"{name!r} is not an adapter; use base, active or a number of `setback adapters list`",
        param_hint="ADAPTERS",
    )


async def _evaluate(
    settings: Settings, adapters: Sequence[Adapter]
) -> tuple[list[Measures], dict[str, str]]:
    async with served_model(settings) as model:
        info = await model.info()
        critics = await known_critics(settings, info)
        evaluation_data = await load_evaluation_data(
            info, model, settings.refine, critics.references
        )
        evaluator = Evaluator(
            model, evaluation_data.sets, evaluation_data.truth, info.reminder, info.model_revision
        )
        measured = []
        for adapter in _resolved(adapters, info):
            typer.echo(f"measuring {adapter} ...", err=True)
            folder = settings.refine.work_dir / "measures"
            critic = critics.of(None if adapter == _BASE else int(adapter))
            measured.append(await evaluator.measure_once(folder, critic))
    return measured, {
        "model": f"{info.model}, revision {info.model_revision}",
        "active": _BASE if info.active is None else f"adapter {info.active}",
        "sets": f"{evaluation_data.sets.name}, {evaluation_data.sets.sha256[:12]}",
        "truth": evaluation_data.truth.name,
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _resolved(adapters: Sequence[Adapter], info: ServedInfo) -> list[Adapter]:
    """Replaces "active" by the active adapter, and removes duplicates."""
    active: Adapter = _BASE if info.active is None else info.active
    return list(dict.fromkeys(active if adapter == _ACTIVE else adapter for adapter in adapters))
