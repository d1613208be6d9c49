"""The GPU check: what the guard does and costs on a GPU, in one command.

    python -m tests.gpu.check OUT [--dry-run] [--part NAME ...] [--vllm='OPTIONS']

Runs the parts in order of value (parts.py) and writes each one's figures to OUT/NAME.json at once,
so that a machine that is taken back loses only the part it was in. A part that fails writes its
traceback, and the next one runs. `--dry-run` has a small model and a small load, for a machine
without a GPU.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from tests.gpu.model import LLAMA_8B, SMALL
from tests.gpu.parts import PARTS, GpuCheck


def main() -> int:
    """Runs the parts; returns how many failed."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        check = GpuCheck(
            out=arguments.out.absolute(),
            work=Path(work),
            size=SMALL if arguments.dry_run else LLAMA_8B,
            vllm_options=shlex.split(arguments.vllm),
            clients=(2,) if arguments.dry_run else (16, 64, 256),
            tokens=(8,) if arguments.dry_run else (64, 256),
            steps=2 if arguments.dry_run else 20,
            training_tokens=64 if arguments.dry_run else 512,
            reference=arguments.reference,
        )
        return sum(not _ran(name, check) for name in arguments.part or PARTS)


def _ran(name: str, check: GpuCheck) -> bool:
    begun = time.monotonic()
    try:
        result = PARTS[name](check)
    # A part's failure is a result; a server that does not start ends it by pytest's exception.
    except (Exception, pytest.fail.Exception):
        result = {"error": traceback.format_exc()}
    seconds = time.monotonic() - begun
    path = check.out / f"{name}.json"
    path.write_text(json.dumps({"seconds": seconds, **result}, indent=1) + "\n")
    outcome = result.get("error", "done")
    sys.stdout.write(f"{name}: {seconds:.0f} s: {outcome}\n")
    sys.stdout.flush()
    return "error" not in result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The GPU check.")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--dry-run", action="store_true", help="small, for a CPU")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument("--reference", type=Path, help="a verdicts.json of another machine")
    parser.add_argument("--vllm", default="", help="vLLM options of every server, in one string")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
