"""The parts of the GPU check, in order of value. Each returns its figures. check.py runs them."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from guard.store.migrate import upgrade
from guard.store.url import parse_url
from guard.vllm.session import ASYNC_SCHEDULER
from refine.seed import corpus
from refine.stages.dataset import Example, Kind, write_dataset
from refine.stages.training import TrainPlan
from tests.adapters import activate, publish
from tests.e2e.conftest import ROOT, SETBACK, Server, running_server
from tests.e2e.load import loaded, percentile
from tests.e2e.refine_access import model_revision
from tests.gpu.model import Size, write_adapter, write_model

PASS_ALL = '[default]\nthreshold = 1.0\naction = "pass"\n'
"""Every critique is made, and noise is let out."""
_TEXTS = 200


@dataclass(frozen=True)
class GpuCheck:
    """What all parts share.

    work: a folder for models and databases. vllm_options: of every server. clients, tokens: of the
    loads. steps: of the training. reference: verdicts of another machine to compare with.
    """

    out: Path
    work: Path
    size: Size
    vllm_options: Sequence[str]
    clients: Sequence[int]
    tokens: Sequence[int]
    steps: int
    training_tokens: int
    reference: Path | None

    @property
    def model(self) -> Path:
        """The folder of the random model."""
        return self.work / "model"


def machine(_check: GpuCheck) -> dict[str, Any]:
    """Returns the GPU and the versions."""
    import torch
    import vllm

    cuda = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "vllm": vllm.__version__,
    }


def model(check: GpuCheck) -> dict[str, Any]:
    """Writes the random model; returns its size."""
    # Runs in its own process, so that it leaves no GPU memory allocated.
    code = "import sys; from tests.gpu.parts import write; write(*sys.argv[1:])"
    size = json.dumps(vars(check.size))
    subprocess.run([sys.executable, "-c", code, str(check.model), size], cwd=ROOT, check=True)
    return {"gib": sum(file.stat().st_size for file in check.model.iterdir()) / 2**30}


def write(folder: str, size: str) -> None:
    """Writes the random model of a size in JSON."""
    write_model(Path(folder), Size(**json.loads(size)))


def serve(check: GpuCheck) -> dict[str, Any]:
    """Starts the guarded server; returns how it answered, plain and streamed, and its scores."""
    begun = time.monotonic()
    with _serving(check, "serve") as server, server.openai() as client:
        ready_s = time.monotonic() - begun
        request: dict[str, Any] = {
            "model": str(check.model),
            "messages": [{"role": "user", "content": "How do I water a fern?"}],
            "max_tokens": 32,
            "extra_body": {"moderation": {"model": "omni-moderation-latest"}},
        }
        plain = client.chat.completions.create(**request)
        chunks = list(client.chat.completions.create(**request, stream=True))
        with server.http() as http:
            metrics = http.get("/metrics").text
        log = server.log.read_text(errors="replace")
    (check.out / "serve.log").write_text(log)
    return {
        "ready_s": ready_s,
        "moderation": plain.model_dump().get("moderation"),
        "chunks": len(chunks),
        "critiques": re.findall(r"^setback_critique\w*\{.*$", metrics, re.M)[:20],
        "scheduling": re.findall(r"[^\n]*(?:[Aa]synchronous scheduling|cudagraph_mode)[^\n]*", log),
    }


def tests(check: GpuCheck) -> dict[str, Any]:
    """Runs the tests that need a GPU; returns their summary."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (check.out / "tests.log").write_text(done.stdout + done.stderr)
    return {"status": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}


def price(check: GpuCheck) -> dict[str, Any]:
    """Returns what the guard costs beside bare vLLM, one kind and length after another."""
    return {
        "cells": [
            _priced(check, "price", kind, tokens)
            for tokens in check.tokens
            for kind in ("plain", "streamed")
        ]
    }


def session(check: GpuCheck) -> dict[str, Any]:
    """Returns the price with critiques in the answers' own sessions, to compare with the price of
    critiques that are requests."""
    options = ("--scheduler-cls", ASYNC_SCHEDULER)
    tokens = check.tokens[0]
    return {
        "cells": [
            _priced(check, "session", kind, tokens, *options) for kind in ("plain", "streamed")
        ]
    }


def _priced(check: GpuCheck, part: str, kind: str, tokens: int, *options: str) -> Any:
    out = check.out / f"{part}-{kind}-{tokens}"
    command = [SETBACK, "bench", str(check.model), "--out", str(out), "--past-end"]
    command += ["--kind", kind, "--output-tokens", str(tokens), "--rounds", "1"]
    for clients in check.clients:
        command += ["--clients", str(clients)]
    subprocess.run(
        [*command, "--", *_half_the_memory(check.vllm_options), *options],
        env=os.environ | {"SETBACK_POLICY_FILE": str(_policy(check))},
        check=True,
    )
    return json.loads((out / "bench.json").read_text())


def swaps(check: GpuCheck) -> dict[str, Any]:
    """Returns how many requests failed while adapters were swapped, and the latencies."""
    with _serving(check, "swaps", "--adapter-poll-s", "0.2") as server:
        return asyncio.run(_swapped(check, server))


async def _swapped(check: GpuCheck, server: Server) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.base_url, timeout=120) as http:
        info = (await http.get("/v1/models")).json()
    revision = await model_revision(server)
    folder = server.log.parent
    versions = [
        await publish(
            server.database,
            folder / "adapters",
            write_adapter(folder / f"trained-{seed}", check.size, seed),
            revision,
        )
        for seed in (1, 2, 3)
    ]
    prompts = [pair.benign[-1]["content"] for pair in corpus.pairs("gate")[:32]]
    swapped_at = []
    async with loaded(
        server, info["data"][0]["id"], prompts, clients=check.clients[0], tokens=check.tokens[0]
    ) as load:
        await load.until_answered_by("base")
        quiet = time.monotonic()
        for _ in range(len(prompts)):
            await load.until_answered_by("base")
        for version in versions:
            swapped_at.append(time.monotonic())
            await activate(server.database, version)
            await load.until_answered_by(f"setback-{version}")
            for _ in range(len(prompts)):
                await load.until_answered_by(f"setback-{version}")
    before = load.latencies(lambda a: a.begun >= quiet and a.ended <= swapped_at[0])
    after = load.latencies(lambda a: a.ended > swapped_at[0])
    return {
        "answers": len(load.answers),
        "failures": load.failures,
        "by_adapter": sorted({answer.adapter for answer in load.answers}),
        "before_s": {"p50": median(before), "p99": percentile(before, 99)},
        "swapping_s": {"p50": median(after), "p99": percentile(after, 99)},
    }


def training(check: GpuCheck) -> dict[str, Any]:
    """Returns the speed and the memory of a LoRA training on the random model."""
    folder = check.work / "training"
    text = "The fern wants water twice a week, and a place out of the sun. "
    example = Example(
        Kind.SAFE,
        ({"role": "user", "content": "How do I water a fern?"},),
        # About half as long as it may be, so that the trainer keeps it.
        text * (check.training_tokens // 64),
    )
    dataset = write_dataset(folder / "dataset", [example] * (16 * check.steps), {})
    plan = TrainPlan(
        base=str(check.model),
        dataset=str(dataset.path),
        out=str(folder / "adapter"),
        checkpoints=str(folder / "checkpoints"),
        start=None,
        rank=16,
        learning_rate=1e-4,
        epochs=1,
        batch_size=16,
        max_length=check.training_tokens,
        seed=0,
        max_steps=check.steps,
    )
    path = folder / "plan.json"
    path.write_text(json.dumps(vars(plan)))
    begun = time.monotonic()
    most_mib = 0
    with (check.out / "training.log").open("wb") as log:
        command = [sys.executable, "-m", "refine.stages.train", str(path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            most_mib = max(most_mib, _gpu_mib())
            time.sleep(0.5)
    output = (check.out / "training.log").read_text(errors="replace")
    return {
        "status": process.returncode,
        "seconds_with_loading": time.monotonic() - begun,
        "most_gpu_mib": most_mib,
        "tokens_per_example": check.training_tokens,
        "trainer": re.findall(r"\{'train_runtime[^}]*\}", output),
    }


def verdicts(check: GpuCheck) -> dict[str, Any]:
    """Returns SmolLM2's scores of 200 texts with its shipped adapter, and how far they are from a
    reference."""
    texts = [text for pair in corpus.texts("report") for text in (pair.harmful, pair.benign)]
    request = {"input": texts[:_TEXTS]}
    with (
        _serving(check, "verdicts", model="smollm2", policy=False) as server,
        server.http() as http,
    ):
        judged = http.post("/v1/moderations", json=request).raise_for_status().json()
    harms = [sum(result["category_scores"].values()) for result in judged["results"]]
    flagged = [result["flagged"] for result in judged["results"]]
    result: dict[str, Any] = {"harms": harms, "flagged": flagged}
    if check.reference is not None:
        known = json.loads(check.reference.read_text())
        pairs = list(zip(harms, known["harms"], strict=True))
        result["largest_difference"] = max(abs(a - b) for a, b in pairs)
        result["verdicts_that_differ"] = sum(
            a != b for a, b in zip(flagged, known["flagged"], strict=True)
        )
    return result


PARTS = {
    part.__name__: part
    for part in (machine, model, serve, tests, price, session, swaps, training, verdicts)
}


@contextmanager
def _serving(
    check: GpuCheck, name: str, *options: str, model: str = "", policy: bool = True
) -> Iterator[Server]:
    folder = check.work / name
    folder.mkdir(parents=True)
    database = f"sqlite:///{folder}/flags.db"
    upgrade(parse_url(database))
    command = [
        SETBACK,
        "serve",
        model or str(check.model),
        "--adapters-dir",
        str(folder / "adapters"),
    ]
    command += [*options, *check.vllm_options]
    if policy:
        command += ["--policy-file", str(_policy(check))]
    with running_server(folder, database, lambda port: [*command, "--port", str(port)]) as server:
        yield server


def _policy(check: GpuCheck) -> Path:
    path = check.work / "policy.toml"
    path.write_text(PASS_ALL)
    return path


def _half_the_memory(options: Sequence[str]) -> list[str]:
    """Two servers share the GPU. A later option overrides an earlier one."""
    return [*options, *(["--gpu-memory-utilization", "0.4"] if _gpu_mib() else [])]


def _gpu_mib() -> int:
    """Returns the memory of the first GPU that is in use, or 0 without one."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    return int(output.split()[0])
