"""A server with several policies and a key of each, for the tests of policies."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from guard.store import migrate
from guard.store.flags import StoredFlag
from guard.store.keys import KeyStore
from guard.store.review import Filter, ReviewStore
from guard.store.url import parse_url
from refine.practice.integrity import MODEL_NAME
from tests.e2e.conftest import SETBACK, Server, running_server
from tests.e2e.loop import ask as stored

HARMFUL = "My plan is to smuggle moon wine past the meadow. Where do I start?"
EVERYDAY = "How do I water a rose?"
POLICY = """
refusal = "Not here."

[default]
action = "block"

[policies.strict]
refusal = "{strict}"

[policies.strict.default]
threshold = 0.0

[policies.watched]
shadow = true

[policies.calls]
refusal = "No such tool."

[[policies.calls.criteria]]
name = "plants"
arguments.look_up.properties.plant.pattern = "^(fern|rose)$"

[policies.no-calls]
extends = "calls"

[[policies.no-calls.criteria]]
name = "plants"
arguments."*" = false

[policies.projects]
models = ["other"]

[[policies.projects.criteria]]
name = "projects"
words = ["Project Heron"]

[[policies.no-calls.criteria]]
name = "orders"
words = ["wire the money"]
applies_to = ["tool_result"]

[policies.short]
refusal = "Too long."

[[policies.short.criteria]]
name = "long"
max_characters = 40

[policies.german]
refusal = "Nur Deutsch."

[[policies.german.criteria]]
name = "other-languages"
languages = ["de"]

[policies.masking.default]
threshold = 0.0
action = "annotate"

[[policies.masking.criteria]]
name = "flowers"
words = ["red rose"]
applies_to = ["input"]
action = "mask"

[[policies.masking.criteria]]
name = "addresses"
personal_data = ["EMAIL_ADDRESS"]
applies_to = ["input"]
action = "mask"
"""
_KEYS = ("strict", "watched", "calls", "no-calls", "short", "german", "masking")


@dataclass(frozen=True)
class Tenants:
    """A server and keys of several policies. file: its policy file."""

    server: Server
    file: Path
    keys: dict[str, str]

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.server.base_url}/v1", api_key=self.keys[key], max_retries=0
        )

    def caller(self, way: str, key: str) -> Any:
        """Returns the client for a way to call tools."""
        if way != "message":
            return self.client(key)
        return anthropic.Anthropic(
            base_url=self.server.base_url, api_key=self.keys[key], max_retries=0
        )

    def ask(self, key: str, content: str, **headers: str) -> Any:
        """Returns the response to a chat, with its headers."""
        with self.client(key) as client:
            return client.chat.completions.with_raw_response.create(
                model=MODEL_NAME,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                extra_headers=headers,
            )

    def said(self, key: str, content: str, **headers: str) -> str:
        message: str = self.ask(key, content, **headers).parse().choices[0].message.content
        return message

    def flag(self, request_id: str) -> StoredFlag:
        (flag,) = stored(
            ReviewStore(self.server.database),
            lambda store: store.page(Filter(request_id=request_id), 9),
        )
        assert isinstance(flag, StoredFlag)
        return flag

    def newest_flag(self) -> StoredFlag:
        flag: StoredFlag = stored(
            ReviewStore(self.server.database), lambda store: store.page(Filter(), 1)
        )[0]
        return flag

    def in_force(self) -> dict[str, Any]:
        """Returns what the server says of its policies."""
        headers = {"authorization": f"Bearer {self.keys['admin']}"}
        url = f"{self.server.base_url}/v1/guard/policy"
        policy: dict[str, Any] = httpx.get(url, headers=headers).json()
        return policy


def write(file: Path, strict: str) -> None:
    file.write_text(POLICY.format(strict=strict))


async def _make_keys(database: str) -> dict[str, str]:
    store = KeyStore(parse_url(database))
    keys = {"admin": (await store.make("admin", "admin", by="a test"))[1]}
    keys["plain"] = (await store.make("plain", "call", by="a test"))[1]
    for name in (*_KEYS, "gone"):
        keys[name] = (await store.make(name, "call", by="a test", policy=name))[1]
    await store.close()
    return keys


@pytest.fixture(scope="session")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    folder = tmp_path_factory.mktemp("policies")
    file, database = folder / "policy.toml", f"sqlite:///{folder}/flags.db"
    write(file, "Ask a grown-up.")
    migrate.upgrade(parse_url(database))
    keys = asyncio.run(_make_keys(database))
    options = ["--policy-file", str(file)]
    with running_server(
        folder,
        database,
        lambda port: [SETBACK, "serve", "practice", "--port", str(port), *options],
    ) as server:
        yield Tenants(server, file, keys)
