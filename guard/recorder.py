"""Turns what was flagged into a row of the flag store. Owns which provenance a flag carries, and
its redaction where that is configured (redact.py). Does not decide what is flagged (judge.py,
input_judge.py), follow a failure (flag_writer.py) or store rows (store/flags.py).
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from guard.call import GuardCall, Ruling
from guard.criteria import Place
from guard.errors import StoreUnavailable
from guard.redact import Redactor
from guard.store.flags import Flag, hash_user


@dataclass(frozen=True)
class Provenance:
    """What produced this server's answers.

    model_revision: the Hub's commit, or a fingerprint of local files.
    user_salt: prevents user names from being guessed from their hashes.
    """

    model: str
    model_revision: str
    user_salt: str


@dataclass(frozen=True, kw_only=True)
class FlaggedText:
    """What was flagged of one engine request: an answer, or its input, which has none.

    prompt: recorded if the call has no messages. choice: the answer's index. released: how many
    characters of the answer were sent before it was flagged. revision: what was sent instead.
    """

    request_id: str
    adapter: str
    policy_hash: str
    prompt: str
    place: Place = Place.OUTPUT
    choice: int = 0
    answer: str = ""
    released: int = 0
    revision: str | None = None


class FlagSink(Protocol):
    """The part of FlagStore that Recorder uses."""

    async def add(self, flag: Flag) -> int:
        """Returns the flag's number, once it is committed."""


class Recorder:
    """Writes the flags of one server. redactor: None stores texts unchanged."""

    def __init__(
        self, store: FlagSink, provenance: Provenance, redactor: Redactor | None = None
    ) -> None:
        self._store = store
        self._provenance = provenance
        self._redactor = redactor

    async def record(self, call: GuardCall, ruling: Ruling, flagged: FlaggedText) -> None:
        """Commits a flag before it returns. Raises StoreUnavailable."""
        verdict = ruling.verdict
        if verdict is None or not verdict.scores:
            raise ValueError("only a full verdict can be recorded as a flag")
        provenance = self._provenance
        flag = Flag(
            request_id=flagged.request_id,
            route=call.route,
            place=flagged.place,
            choice=flagged.choice,
            messages=list(call.messages) or [{"role": "user", "content": flagged.prompt}],
            answer=flagged.answer,
            released_chars=flagged.released,
            revision=flagged.revision,
            harm=verdict.harm,
            category_scores=verdict.scores,
            categories=ruling.decision.categories,
            action=ruling.decision.action,
            adapter=flagged.adapter,
            model=provenance.model,
            model_revision=provenance.model_revision,
            policy_hash=flagged.policy_hash,
            prompt_version=verdict.prompt_version,
            user_hash=hash_user(call.user, provenance.user_salt) if call.user else None,
            created_at=datetime.now(UTC),
        )
        if self._redactor is not None:
            flag = await _redacted(flag, self._redactor)
        await self._store.add(flag)


async def _redacted(flag: Flag, redactor: Redactor) -> Flag:
    """Returns the flag without personal data. Raises StoreUnavailable when redaction fails."""
    try:
        # In a thread: a long conversation would block the event loop.
        return await asyncio.to_thread(_without_personal_data, flag, redactor)
    except Exception as error:
        # Only the error's type: its message may quote the text.
        problem = f"The flag could not be redacted: {type(error).__name__}"
        raise StoreUnavailable(problem) from None


def _without_personal_data(flag: Flag, redactor: Redactor) -> Flag:
    answer, released = redactor.redact_at(flag.answer, flag.released_chars)
    return replace(
        flag,
        messages=[
            {name: redactor.redact(str(value)) for name, value in message.items()}
            for message in flag.messages
        ],
        answer=answer,
        released_chars=released,
        revision=flag.revision and redactor.redact(flag.revision),
    )
