"""One server for each model family in turn, with real vLLM. The first family is always tested, the
others only with --full."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from guard.store import migrate
from guard.store.url import parse_url
from tests.e2e.conftest import SETBACK, Server, running_server
from tests.families.made import CONTEXT, FAMILIES, QWEN, SERVED, Family, model_folder

# Random weights have no opinion: everything is flagged, and let out unless a request asks to block.
ANNOTATE_ALL = '[default]\nthreshold = 0.0\naction = "annotate"\n'


@dataclass(frozen=True)
class Served:
    """A family's server, and the folders of its model and its adapters."""

    family: Family
    server: Server
    model: Path
    adapters: Path

    def client(self) -> openai.OpenAI:
        return self.server.openai()


@pytest.fixture(scope="session", params=[family.name for family in SERVED])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Starts `setback serve FOLDER` with the family's options for tools and reasoning."""
    family = FAMILIES[request.param]
    if family is not QWEN and not request.config.getoption("--full"):
        pytest.skip("each family's server takes half a minute; pass --full")
    folder = tmp_path_factory.mktemp(family.name)
    model = model_folder(family, folder / "model")
    (folder / "policy.toml").write_text(ANNOTATE_ALL)
    database = f"sqlite:///{folder}/flags.db"
    migrate.upgrade(parse_url(database))
    options = ["--served-model-name", family.name, "--dtype", "float32", *family.options]
    options += ["--max-model-len", str(CONTEXT), "--kv-cache-memory-bytes", "256M"]
    options += ["--adapters-dir", str(folder / "adapters"), "--adapter-poll-s", "0.1"]
    options += ["--policy-file", str(folder / "policy.toml"), "--max-lora-rank", "64"]

    def command(port: int) -> list[str]:
        return [SETBACK, "serve", str(model), "--port", str(port), *options]

    with running_server(folder, database, command) as server:
        yield Served(family, server, model, folder / "adapters")
