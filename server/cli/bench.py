"""`setback bench`: measures the guard's cost. Owns the command's options. Does not measure
(bench/measure.py) or report (bench/report.py).
"""

from pathlib import Path
from typing import Annotated

import typer

from server.bench import report
from server.bench.measure import BenchKind, BenchPlan
from server.bench.measure import bench as measure
from server.launch.models import DEFAULT, find_model

_CLIENTS = (1, 16, 64)
_OUTPUT_TOKENS = (16, 64, 256)
_DEFAULT_OUT = Path("data/bench")


def bench(
    model: Annotated[
        str, typer.Argument(help="As for `setback serve`.", show_default=True)
    ] = DEFAULT,
    vllm_options: Annotated[
        list[str] | None, typer.Argument(help="vLLM options of both servers, after `--`.")
    ] = None,
    kind: Annotated[
        list[BenchKind] | None, typer.Option(help="What to request; repeatable; default: all.")
    ] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Concurrent clients; repeatable; default: 1, 16 and 64."),
    ] = None,
    output_tokens: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="The most tokens of an answer; repeatable; default: 16, 64 and 256."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds of each load.")] = 5,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="The LoRA adapter to measure; default: the base model.",
            exists=True,
            file_okay=False,
            resolve_path=True,
        ),
    ] = None,
    repaired: Annotated[
        bool,
        typer.Option(
            help="Patch bare vLLM's CPU backend as Setback does, to measure the guard alone."
        ),
    ] = False,
    past_end: Annotated[
        bool,
        typer.Option(help="Ignore end marks, so that all answers have the most tokens."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.png.")] = _DEFAULT_OUT,
) -> None:
    """Measure the guard's cost, as ratios to bare vLLM with the same model."""
    plan = BenchPlan(
        find_model(model),
        kind or tuple(BenchKind),
        clients or _CLIENTS,
        output_tokens or _OUTPUT_TOKENS,
        rounds,
        adapter=adapter,
        patched=repaired,
        ignore_eos=past_end,
        vllm_options=vllm_options or (),
    )
    out.mkdir(parents=True, exist_ok=True)
    cells = []
    for cell in measure(plan):
        report.print_cell(cell)
        cells.append(cell)
        report.write(plan.title, cells, out / "bench.json")
    report.print_summary(plan.title, cells)
    report.plot(plan.title, cells, out / "bench.png")
