"""Verdicts kept as they come, so that a killed measurement goes on. Owns one file for each server,
identity, set and way of sending: a line that says which, then a line for every verdict.

Failures are not kept: the next run tries those rows again.
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
class KeptVerdict:
    """A verdict, and when it came: `at` seconds after `session` began."""

    verdict: ServedVerdict
    session: str
    at: float


class KeptVerdicts:
    """The verdicts of one file, by the place of their row in the set.

    Usage: `with KeptVerdicts.open(folder, ...) as kept: ...`
    """

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        self.verdicts, whole = _read(path)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write(about)
        self._before = self._file.tell()
        self._known = dict(self.verdicts)
        self._session = uuid4().hex[:8]

    @classmethod
    def open(
        cls, folder: Path, url: str, identity: Identity, benchmark: BenchmarkSet, manner: str
    ) -> "KeptVerdicts":
        """What is kept in `folder` of a set as this server judged it, sent in this manner."""
        about = {
            "url": url,
            **asdict(identity),
            "set": benchmark.format,
            "sha256": benchmark.sha256,
            "manner": manner,
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        return cls(folder / f"{benchmark.format}-{key}.jsonl", about)

    def __enter__(self) -> "KeptVerdicts":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()
        self._lock.release()

    def add(self, place: int, verdict: ServedVerdict, at: float) -> None:
        """Keeps the verdict on the row at `place`, `at` seconds after this session began."""
        self.verdicts[place] = KeptVerdict(verdict, self._session, at)
        self._write({"row": place, **asdict(verdict), "session": self._session, "at": round(at, 4)})

    def drop_session(self) -> None:
        """Forgets what this session added."""
        self._file.truncate(self._before)
        self._file.seek(self._before)
        self.verdicts = dict(self._known)

    def _write(self, fields: Mapping[str, object]) -> None:
        self._file.write(json.dumps(fields).encode() + b"\n")
        self._file.flush()


def _locked(path: Path) -> FileLock:
    """The lock beside a file, held. Raises BenchmarkBusy when another run holds it."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BenchmarkBusy(
            f"Another run measures the same set on the same server, and writes {path}; wait for it"
        ) from error
    return lock


def _read(path: Path) -> tuple[dict[int, KeptVerdict], int]:
    """The verdicts of a file, and how many of its bytes are whole lines.

    A kill can leave half a line at the end, which is cut off.
    """
    if not path.exists():
        return {}, 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    verdicts = {}
    for line in content[:whole].split(b"\n")[1:-1]:
        fields = json.loads(line)
        verdict = ServedVerdict(fields["flagged"], fields["score"])
        verdicts[fields["row"]] = KeptVerdict(verdict, fields["session"], fields["at"])
    return verdicts, whole
