"""PostgreSQL servers of the tests' own. Owns their start, stop, failure and replication. Creates no
schema.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

_PORT = 5432
PROGRAMS = ("initdb", "pg_ctl", "postgres")


@contextmanager
def own_folder(prefix: str) -> Iterator[Path]:
    """Yields a folder that any user may enter, and removes it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def missing_programs() -> list[str]:
    """Returns PostgreSQL's programs that are not on PATH."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@dataclass(frozen=True)
class Postgres:
    """One server. Its socket and its log are in `folder`; with a port it also listens on loopback.

    folder: from own_folder, because pytest's are closed to the user that PostgreSQL has to run as.
    settings: PostgreSQL's, such as "ssl=on".
    """

    folder: Path
    port: int | None = None
    settings: Sequence[str] = ()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def create(self) -> None:
        """Makes an empty cluster."""
        hand_over(self.folder)
        self._run("initdb", "-D", self._data, "-U", "setback", "-A", "trust", "-E", "UTF8", "-N")

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        tcp = f"-h 127.0.0.1 -p {self.port}" if self.port else "-c listen_addresses=''"
        options = f"-k {self.folder} {tcp} -c fsync=off -c max_connections=100"
        # Standbys try again soon after their primary was gone.
        options += " -c wal_retrieve_retry_interval=200ms"
        options += "".join(f" -c {setting}" for setting in self.settings)
        self._run("pg_ctl", "-D", self._data, "-w", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stops the server; by default as a crash would."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def end(self) -> None:
        """Stops the server if it runs."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()

    def standby(self, folder: Path, port: int) -> "Postgres":
        """Returns a standby of this server, which listens on a port. It is not started."""
        other = Postgres(folder, port)
        hand_over(folder)
        source = f"host=127.0.0.1 port={self.port} user=setback"
        self._run("pg_basebackup", "-d", source, "-D", other._data, "-R", "-X", "stream")
        return other

    def promote(self) -> None:
        """Makes a standby the primary."""
        self._run("pg_ctl", "-D", self._data, "-w", "promote")

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Executes statements as the owner."""
        connection = await asyncpg.connect(
            user="setback", database=database, host=str(self.folder), port=self.port or _PORT
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def create_database(self, name: str, template: str = "template1") -> None:
        """Creates a database, in place of one of that name. It is empty, or a copy of `template`,
        to which nobody may be connected."""
        await self.execute(
            f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
            f'CREATE DATABASE "{name}" TEMPLATE "{template}"',
        )

    def _run(self, *command: str) -> None:
        # To a file: a pipe would stay open in the server that pg_ctl leaves running.
        with open(self.folder / "log", "a+b") as log:
            done = subprocess.run(
                command, cwd=self.folder, stdout=log, stderr=log, check=False, **unprivileged_user()
            )
            log.seek(0)
            assert done.returncode == 0, f"{command}: {log.read().decode()}"


def unprivileged_user() -> dict[str, Any]:
    """Returns the user to run as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def hand_over(folder: Path) -> None:
    """Gives a folder to the user that PostgreSQL runs as."""
    user = unprivileged_user()
    if user:
        os.chown(folder, user["user"], user["group"])
