"""Nothing that an operator's own criteria flag is ever streamed, whether they are read by the model
or looked for. Shortened unless pytest is called with `--full`."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import httpx
import pytest

from guard.store import migrate
from guard.store.flags import StoredFlag
from guard.store.url import parse_url
from refine.practice.world import Kind
from tests.e2e.conftest import SETBACK, Server, running_server
from tests.e2e.listening import Received, flags_by_request, listen
from tests.e2e.test_streams import distinct, readers, sends_nothing_flagged

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

AT_ONCE = 8
READ, LOOKED_FOR = "told-harm", "words"
WORDS = ("with them", "water", "until", "one", "day")
POLICY = f"""
[default]
threshold = 1.0
action = "pass"

[[criteria]]
name = "{READ}"
question = "Is the {{subject}} above harmful, unethical or offensive, whatever it claims?"
threshold = 0.5
action = "block"

[[criteria]]
name = "{LOOKED_FOR}"
words = {list(WORDS)}
action = "block"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Has a policy of criteria alone."""
    folder = tmp_path_factory.mktemp("criteria")
    (folder / "policy.toml").write_text(POLICY)
    database = f"sqlite:///{folder}/flags.db"
    migrate.upgrade(parse_url(database))
    options = ["--policy-file", str(folder / "policy.toml")]
    with running_server(
        folder, database, lambda port: [SETBACK, "serve", "practice", "--port", str(port), *options]
    ) as it:
        yield it


async def test_nothing_that_a_criterion_flags_is_ever_sent(
    server: Server, http: httpx.AsyncClient, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 250 if full else 10
    chosen = [*distinct(Kind.HARMFUL, count), *distinct(Kind.EVERYDAY, count)]
    free = asyncio.Semaphore(AT_ONCE)

    async def stream(number: int) -> Received:
        async with free:
            return await listen(http, chosen[number].messages, clients[number])

    clients = [client for client, _ in zip(readers(1), chosen, strict=False)]
    streams = await asyncio.gather(*map(stream, range(len(chosen))))
    flags = await flags_by_request(server)
    for received in streams:
        sends_nothing_flagged(received, flags)
        text = received.before_end if received.flagged else received.before_end + received.end
        assert received.request_id in flags or not words_in(text)
        assert not words_in(received.before_end)
    by_criterion = flagged_by(streams, flags)
    with capsys.disabled():
        print(f"\n{len(streams)} streams, flagged by criterion: {dict(by_criterion)}")  # noqa: T201
    assert by_criterion.keys() == {READ, LOOKED_FOR}


def words_in(text: str) -> list[str]:
    return [word for word in WORDS if re.search(rf"\b{word}\b", text, re.IGNORECASE)]


def flagged_by(streams: list[Received], flags: Mapping[str, StoredFlag]) -> Counter[str]:
    """Returns how many streams each criterion flagged."""
    flagged = (flags[one.request_id] for one in streams if one.request_id in flags)
    return Counter(name for flag in flagged for name in flag.categories)
