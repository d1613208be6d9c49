"""How often a stage of a run was tried in vain: a run that cannot go on ends by itself. Owns the
count, which is kept in the run's folder.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refine.errors import RunGivenUp
from refine.files import write_atomically

MOST_ATTEMPTS = 3
_KILLED = "its job was killed"


@contextmanager
def attempt(folder: Path, stage: str) -> Iterator[None]:
    """One try at a stage, in the block. An error counts, and so does a kill, but not being told to
    stop.

    Raises RunGivenUp at the third failure, or when three kills came before.
    """
    path = folder / f"{stage}.failures.json"
    failures: list[str] = json.loads(path.read_text()) if path.is_file() else []
    _give_up_after(failures, stage)
    # Stays so when the process is killed.
    _keep(path, [*failures, _KILLED])
    try:
        yield
    except asyncio.CancelledError:
        _keep(path, failures)
        raise
    except Exception as error:
        failures.append(str(error) or type(error).__name__)
        _keep(path, failures)
        _give_up_after(failures, stage)
        raise


def _give_up_after(failures: list[str], stage: str) -> None:
    if len(failures) >= MOST_ATTEMPTS:
        raise RunGivenUp(f"{stage} failed {len(failures)} times, at last because {failures[-1]}")


def _keep(path: Path, failures: list[str]) -> None:
    write_atomically(path, json.dumps(failures) + "\n")
