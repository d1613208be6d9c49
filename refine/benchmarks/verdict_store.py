"""Stores verdicts as they arrive, so that a killed evaluation can resume. Owns a file for each
server, identity, set and manner of sending: a line that names these, then a line per verdict.

Failures are not stored: the next run retries those rows.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from refine.benchmarks.public_api import Identity, ServedVerdict
from refine.benchmarks.rows import BenchmarkSet
from refine.errors import BenchmarkBusy


@dataclass(frozen=True)
class StoredVerdict:
    """A verdict, and its time: `at` seconds after `session` began."""

    verdict: ServedVerdict
    session: str
    at: float


class VerdictStore:
    """The verdicts of one file, by the index of their row in the set.

    Usage: `with VerdictStore.open(folder, ...) as store: ...`
    """

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        self.verdicts, size = _read(path)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._write(about)
        self._session_start = self._file.tell()
        self._earlier_verdicts = dict(self.verdicts)
        self._session = uuid4().hex[:8]

    @classmethod
    def open(
        cls, folder: Path, url: str, identity: Identity, benchmark: BenchmarkSet, manner: str
    ) -> "VerdictStore":
        """Opens the verdicts in `folder` on a set by this server, sent in this manner."""
        about = {
            "url": url,
            **asdict(identity),
            "set": benchmark.format,
            "sha256": benchmark.sha256,
            "manner": manner,
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        return cls(folder / f"{benchmark.format}-{key}.jsonl", about)

    def __enter__(self) -> "VerdictStore":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()
        self._lock.release()

    def add(self, index: int, verdict: ServedVerdict, at: float) -> None:
        """Stores the verdict on the row at `index`, `at` seconds after this session began."""
        self.verdicts[index] = StoredVerdict(verdict, self._session, at)
        self._write({"row": index, **asdict(verdict), "session": self._session, "at": round(at, 4)})

    def drop_session(self) -> None:
        """Removes what this session added."""
        self._file.truncate(self._session_start)
        self._file.seek(self._session_start)
        self.verdicts = dict(self._earlier_verdicts)

    def _write(self, fields: Mapping[str, object]) -> None:
        self._file.write(json.dumps(fields).encode() + b"\n")
        self._file.flush()


def _locked(path: Path) -> FileLock:
    """Acquires the lock beside a file. Raises BenchmarkBusy when another run holds it."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BenchmarkBusy(
            f"Another run evaluates the same set on the same server and writes {path}; wait for it"
        ) from error
    return lock


def _read(path: Path) -> tuple[dict[int, StoredVerdict], int]:
    """Returns the verdicts of a file, and the size of its complete lines in bytes.

    A kill may leave an incomplete last line, which is cut off.
    """
    if not path.exists():
        return {}, 0
    content = path.read_bytes()
    size = content.rfind(b"\n") + 1
    verdicts = {}
    for line in content[:size].split(b"\n")[1:-1]:
        fields = json.loads(line)
        verdict = ServedVerdict(fields["flagged"], fields["score"])
        verdicts[fields["row"]] = StoredVerdict(verdict, fields["session"], fields["at"])
    return verdicts, size
