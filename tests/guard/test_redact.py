"""Personal data is found, other text stays, and stored flags have none of it."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, text

from guard.call import GuardCall, Message, Ruling
from guard.errors import StoreUnavailable
from guard.policy import Action, Decision
from guard.recorder import FlaggedText, Provenance, Recorder
from guard.redact import Redactor
from guard.store.database import connect
from guard.store.flags import FlagStore, StoredFlag
from guard.store.review import Filter, ReviewStore
from guard.verdict import CATEGORIES, Verdict

PERSONAL = {
    "EMAIL_ADDRESS": [
        "ada.lovelace+flags@mail.example.org",
        "o'brien@example.co.uk",
        "jürgen@müller.de",
        "почта@пример.рф",
        "x_1%2@xn--mller-kva.example",
    ],
    "PHONE_NUMBER": [
        "+44 20 7946 0018",
        "(202) 555-0143",
        "650-253-0000 ext. 12",
        "6502530000",
    ],
    "CREDIT_CARD": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "3782 822463 10005",
        "6304 0000 0000 0000 000",
    ],
    "IBAN_CODE": [
        "DE89370400440532013000",
        "gb82 west 1234 5698 7654 32",
        "MT84 MALT 0110 0001 2345 MTLC AST0 01S",
    ],
    "IP_ADDRESS": ["10.0.0.1", "2001:db8::8a2e:370:7334", "::1", "::ffff:192.0.2.1"],
}
CASES = [(name, written) for name, several in PERSONAL.items() for written in several]
ORDINARY = [
    "How do I water a fern?",
    "On 2026-11-25 at 12:30:45, or 11/25/2026, 3 of 1,234,567.89",
    "pi is 3.14159265358979, a third is 0.3333333333333333, pip install x==1.2.3",
    "npm i left-pad@1.2.3 @types/node; meet me @ noon; a@b",
    "std::vector<int> a::b; 00:1a:2b:3c:4d:5e; 1.2.3.4.5; 1.2.3.456; ::",
    "4111111111111112 and DE88 3704 0044 0532 0130 00 fail their checksums",
    "550e8400-e29b-41d4-a716-446655440000",
    "<EMAIL_ADDRESS> <PHONE_NUMBER> <CREDIT_CARD> <IBAN_CODE> <IP_ADDRESS>",
    "\ud800 \0",
]
PIECES = st.sampled_from(
    [
        *(written for _, written in CASES),
        *ORDINARY,
        *(" ", "-", ".", ":", "@", "+", "1", "22", "2001", "é", "x", "\n", "/", "(", "::"),
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=8).map("".join),
    st.text("0123456789 -.+()@:ax", max_size=60),
    st.text(st.characters(), max_size=40),
)
REDACTOR = Redactor("US")


@pytest.mark.parametrize(("name", "written"), CASES)
@pytest.mark.parametrize("around", ["{}", "My own: {}.", '("{}")', "\n{}\n", "是{}，"])
def test_it_is_found_and_only_it(name: str, written: str, around: str) -> None:
    assert REDACTOR.redact(around.format(written)) == around.format(f"<{name}>")


@pytest.mark.parametrize("written", ORDINARY)
def test_other_text_stays(written: str) -> None:
    assert REDACTOR.redact(written) == written


@pytest.mark.parametrize(
    ("written", "redacted"),
    [
        ("请联系foo@bar.com谢谢", "请联系<EMAIL_ADDRESS>谢谢"),
        ("?a=1&email=foo@bar.com&b=2", "?a=1&email=<EMAIL_ADDRESS>&b=2"),
        ("https://user:pw@host.example/a", "https://user:<EMAIL_ADDRESS>/a"),
        ("'foo@bar.com'", "'<EMAIL_ADDRESS>'"),
        ("4111 1111 1111 1111 12/27 123", "<CREDIT_CARD> 12/27 123"),
        ("2235 4111 1111 1111 1111", "2235 <CREDIT_CARD>"),
        ("DE89 3704 0044 0532 0130 00 is it", "<IBAN_CODE> is it"),
        ("http://10.0.0.1:80/ [2001:db8::1]:443", "http://<IP_ADDRESS>:80/ [<IP_ADDRESS>]:443"),
        ("fe80::. 2001:db8::1: up", "<IP_ADDRESS>. <IP_ADDRESS>: up"),
        ("a@example.org,b@example.org", "<EMAIL_ADDRESS>,<EMAIL_ADDRESS>"),
    ],
)
def test_text_next_to_personal_data_stays(written: str, redacted: str) -> None:
    assert REDACTOR.redact(written) == redacted


def test_national_numbers_are_those_of_the_region() -> None:
    british, american = "020 7946 0018", "(202) 555-0143"
    assert Redactor("GB").redact(f"{british}; {american}") == f"<PHONE_NUMBER>; {american}"
    assert Redactor("US").redact(f"{british}; {american}") == f"{british}; <PHONE_NUMBER>"


def test_of_what_overlaps_nothing_is_left() -> None:
    assert REDACTOR.redact("+1 202 555 0143@example.org") == "<PHONE_NUMBER>"
    assert REDACTOR.redact("202-555-0143.x@example.org") == "<EMAIL_ADDRESS>"


def test_overlapping_personal_data_is_found() -> None:
    both = "202 555 0143 4111 1111 1111 1111"
    assert REDACTOR.redact(both) == "<PHONE_NUMBER> <CREDIT_CARD>"


def test_personal_data_is_found_among_many_numbers() -> None:
    padding = "1/2 " * 40_000
    assert REDACTOR.redact(f"{padding}+44 20 7946 0018") == f"{padding}<PHONE_NUMBER>"


@given(TEXTS)
@settings(deadline=None)
def test_redacting_again_changes_nothing(written: str) -> None:
    once = REDACTOR.redact(written)
    assert REDACTOR.redact(once) == once


@given(st.text(st.characters(exclude_categories=["Nd"], exclude_characters="@"), max_size=60))
@settings(deadline=None)
def test_a_text_without_digits_and_addresses_is_unchanged(written: str) -> None:
    assert REDACTOR.redact(written) == written


@given(st.data(), TEXTS)
@settings(deadline=None)
def test_a_position_stays_where_it_was(data: st.DataObject, written: str) -> None:
    first, second = sorted(data.draw(st.integers(0, len(written))) for _ in range(2))
    redacted, moved = REDACTOR.redact_at(written, first)
    assert redacted == REDACTOR.redact(written)
    assert 0 <= moved <= REDACTOR.redact_at(written, second)[1] <= len(redacted)
    assert REDACTOR.redact_at(written, len(written))[1] == len(redacted)
    assert REDACTOR.redact_at(written, 0)[1] == 0


@pytest.mark.parametrize(
    ("let_out", "stored"),
    [
        ("", ""),
        ("Write to ", "Write to "),
        ("Write to a@exam", "Write to <EMAIL_ADDRESS>"),
        ("Write to a@example.org", "Write to <EMAIL_ADDRESS>"),
        ("Write to a@example.org or ::1 n", "Write to <EMAIL_ADDRESS> or <IP_ADDRESS> n"),
    ],
)
def test_a_position_within_something_personal_is_after_its_name(let_out: str, stored: str) -> None:
    whole = "Write to a@example.org or ::1 now"
    redacted, position = REDACTOR.redact_at(whole, len(let_out))
    assert redacted[:position] == stored


EMAIL, PHONE, CARD, IBAN, ADDRESS = (several[0] for several in PERSONAL.values())
ANSWER = f"Write to {EMAIL}, or pay with {CARD}: then take the gnome."
RULING = Ruling(
    Verdict(0.9, {category: 0.9 / len(CATEGORIES) for category in CATEGORIES}),
    Decision(Action.REVISE, ("violence",), "scripted"),
    checked=len(ANSWER),
)


CONVERSATION: list[Message] = [
    {"role": "system", "content": f"Your owner is at {IBAN}."},
    {"role": "user", "content": f"I am {EMAIL}, {PHONE}, at {ADDRESS}."},
]


async def recorded(
    store: FlagStore,
    redactor: Redactor | None,
    *,
    messages: Sequence[Message] = CONVERSATION,
    answer: str = ANSWER,
    released: int = 0,
    revision: str | None = f"Ask {PHONE} instead.",
) -> StoredFlag:
    """Returns a flag as it is stored."""
    recorder = Recorder(store, Provenance("practice", "1", "s" * 16), redactor)
    await recorder.record(
        GuardCall("/v1/chat/completions", messages),
        RULING,
        FlaggedText(
            request_id="chatcmpl-1",
            adapter="base",
            policy_hash="hash",
            choice=0,
            prompt=f"I am {EMAIL}.",
            answer=answer,
            released=released,
            revision=revision,
        ),
    )
    (flag,) = await store.unlearned(limit=9)
    return flag


async def test_a_flag_is_stored_without_personal_data(store: FlagStore) -> None:
    let_out = f"Write to {EMAIL}, or"
    flag = await recorded(store, REDACTOR, released=len(let_out))
    assert [message["content"] for message in flag.messages] == [
        "Your owner is at <IBAN_CODE>.",
        "I am <EMAIL_ADDRESS>, <PHONE_NUMBER>, at <IP_ADDRESS>.",
    ]
    assert flag.answer == ANSWER.replace(EMAIL, "<EMAIL_ADDRESS>").replace(CARD, "<CREDIT_CARD>")
    assert flag.answer[: flag.released_chars] == "Write to <EMAIL_ADDRESS>, or"
    assert flag.revision == "Ask <PHONE_NUMBER> instead."


async def test_no_part_of_it_is_in_row_search_or_export(
    database: URL, store: FlagStore, reviews: ReviewStore
) -> None:
    await recorded(store, REDACTOR)
    engine = connect(database)
    async with engine.connect() as connection:
        rows = [[*await connection.execute(text("SELECT * FROM flags"))]]
        rows += [[*await connection.execute(text("SELECT * FROM flag_search"))]]
    await engine.dispose()
    exported = [flag async for flag in reviews.export(Filter())]
    parts = ("lovelace", "7946", "4111", "3704", "10.0.0.1")
    assert len(rows[0]) == len(rows[1]) == len(exported) == 1
    for part in parts:
        assert part not in f"{rows} {exported}"
        assert await reviews.page(Filter(text=part), limit=9) == []
    for name in PERSONAL:
        assert len(await reviews.page(Filter(text=name), limit=9)) == 1


async def test_without_redaction_a_flag_is_stored_as_it_was(store: FlagStore) -> None:
    flag = await recorded(store, None, released=7)
    assert (flag.answer, flag.released_chars) == (ANSWER, 7)
    assert str(flag.messages[1]["content"]).startswith(f"I am {EMAIL}")


async def test_a_raw_prompt_is_redacted_too(store: FlagStore) -> None:
    flag = await recorded(store, REDACTOR, messages=(), answer="", revision=None)
    assert flag.messages == [{"role": "user", "content": "I am <EMAIL_ADDRESS>."}]
    assert (flag.answer, flag.revision) == ("", None)


class BrokenRedactor(Redactor):
    """Fails with a message that quotes the text."""

    def redact_at(self, text: str, position: int) -> tuple[str, int]:
        raise LookupError(text)


async def test_without_redaction_flags_are_not_stored_and_answers_withheld(
    store: FlagStore,
) -> None:
    with pytest.raises(StoreUnavailable, match="could not be redacted: LookupError") as raised:
        await recorded(store, BrokenRedactor("US"))
    assert EMAIL not in str(raised.value)
    assert await store.unlearned(limit=9) == []


async def test_others_are_served_while_a_long_text_is_redacted(store: FlagStore) -> None:
    served = 0

    async def serve() -> None:
        nonlocal served
        while True:
            await asyncio.sleep(0)
            served += 1

    others = asyncio.ensure_future(serve())
    await recorded(store, REDACTOR, answer="AB12 4/5 " * 4000)
    others.cancel()
    assert served > 10
