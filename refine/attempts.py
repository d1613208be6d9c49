"""Failed attempts at a stage. Owns their count, which is stored in the run's folder, and the limit
after which a run is given up.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refine.errors import RunGivenUp
from refine.files import write_atomically

MAX_ATTEMPTS = 3
_KILLED = "its job was killed"


@contextmanager
def attempt(folder: Path, stage: str) -> Iterator[None]:
    """Counts the block as an attempt at a stage. Errors and kills count, cancellation does not.

    Raises RunGivenUp after the third failure, or at once when three attempts were killed.
    """
    path = folder / f"{stage}.failures.json"
    failures: list[str] = json.loads(path.read_text()) if path.is_file() else []
    _check_failures(failures, stage)
    # Remains in the file if the process is killed.
    _write(path, [*failures, _KILLED])
    try:
        yield
    except asyncio.CancelledError:
        _write(path, failures)
        raise
    except Exception as error:
        failures.append(str(error) or type(error).__name__)
        _write(path, failures)
        _check_failures(failures, stage)
        raise


def _check_failures(failures: list[str], stage: str) -> None:
    if len(failures) >= MAX_ATTEMPTS:
        raise RunGivenUp(f"{stage} failed {len(failures)} times, at last because {failures[-1]}")


def _write(path: Path, failures: list[str]) -> None:
    write_atomically(path, json.dumps(failures) + "\n")
