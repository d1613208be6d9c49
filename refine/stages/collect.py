"""Stage 1: chooses the flags that a run trains on. Owns de-duplication, caps and held-out flags.
Reads no database: it turns flags into a Collection, and counts every flag that it leaves out by
reason.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from guard.criteria import Place
from guard.store.flags import StoredFlag
from guard.store.runs import Use
from guard.verdict import CATEGORIES
from refine.options import RefineOptions

_PERMUTATIONS = 64
_SHINGLE_WORDS = 2


@dataclass(frozen=True)
class FlaggedCase:
    """A flag in the form that the refine loop uses.

    messages: the conversation up to and including its last user turn, as plain text.
    revision: the guard's revision that was sent instead of the answer, or None.
    correction: a reviewer's corrected answer, or None.
    """

    flag_id: int
    messages: tuple[Mapping[str, str], ...]
    answer: str
    category: str
    revision: str | None = None
    correction: str | None = None

    @property
    def request(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Collection:
    """The flags of one run.

    learn: harmful answers to train on. fine: answers that a reviewer dismissed as harmless.
    held_out: never trained on; measured by the gate. repeats: ids of near-duplicates of these, or
    of a flag that an earlier run held out. left_out: counts by reason.
    """

    learn: tuple[FlaggedCase, ...]
    fine: tuple[FlaggedCase, ...]
    held_out: tuple[FlaggedCase, ...]
    repeats: tuple[int, ...]
    left_out: Mapping[str, int]

    @property
    def uses(self) -> dict[int, Use]:
        """The use of each flag, for the run's row."""
        uses: dict[int, Use] = {case.flag_id: "train" for case in (*self.learn, *self.fine)}
        uses |= {case.flag_id: "held_out" for case in self.held_out}
        return uses | dict.fromkeys(self.repeats, "repeat")

    @property
    def counts(self) -> dict[str, int]:
        """The counts for the run's row."""
        sizes = {"learn": len(self.learn), "fine": len(self.fine), "held_out": len(self.held_out)}
        return {**sizes, **{f"left out: {why}": n for why, n in sorted(self.left_out.items())}}


def collect(
    flags: Iterable[StoredFlag],
    earlier_held_out: Iterable[StoredFlag],
    options: RefineOptions,
    unusable: Mapping[int, str] = MappingProxyType({}),
) -> Collection:
    """Sorts the flags not yet used. The oldest come first, so that the result is reproducible.

    earlier_held_out: held out by promoted runs; their near-duplicates are never trained on.
    unusable: ids of flags that the model cannot be asked about, with the reason.
    """
    left_out: Counter[str] = Counter()
    seen = _NearDuplicates(options.near_duplicate)
    for flag in earlier_held_out:
        if (case := case_of(flag)) is not None:
            seen.add(case, "like a held-out flag")
    accepted: list[tuple[FlaggedCase, StoredFlag]] = []
    repeats: list[int] = []
    caps = _Caps(options)
    for flag in flags:
        case = case_of(flag)
        if flag.place is not Place.OUTPUT:
            left_out["flagged in the input"] += 1
        elif case is None:
            left_out["not text"] += 1
        elif case.category not in CATEGORIES:
            left_out["flagged for a criterion alone"] += 1
        elif flag.id in unusable:
            left_out[unusable[flag.id]] += 1
        elif options.require_review and flag.review is None:
            left_out["not reviewed"] += 1
        elif reason := seen.known(case):
            left_out[reason] += 1
            repeats.append(flag.id)
        elif reason := caps.exceeded_cap(flag, case):
            left_out[reason] += 1
        else:
            seen.add(case, "near-duplicate")
            caps.count(flag, case)
            accepted.append((case, flag))
    learn, fine, held_out = _split(accepted, options)
    return Collection(learn, fine, held_out, tuple(repeats), left_out)


def _split(
    accepted: Sequence[tuple[FlaggedCase, StoredFlag]], options: RefineOptions
) -> tuple[tuple[FlaggedCase, ...], tuple[FlaggedCase, ...], tuple[FlaggedCase, ...]]:
    """Returns the flags to train on, the dismissed ones and the held-out ones."""
    harmful = [case for case, flag in accepted if flag.review != "dismissed"]
    fine = tuple(case for case, flag in accepted if flag.review == "dismissed")
    count = round(len(harmful) * options.held_out_share)
    held_out = set(random.Random(options.seed).sample(range(len(harmful)), count))
    return (
        tuple(case for index, case in enumerate(harmful) if index not in held_out),
        fine,
        tuple(case for index, case in enumerate(harmful) if index in held_out),
    )


class _Caps:
    """The limits of how many flags each user and category may contribute."""

    def __init__(self, options: RefineOptions) -> None:
        self._options = options
        self._users: Counter[str | None] = Counter()
        self._categories: Counter[str] = Counter()

    def exceeded_cap(self, flag: StoredFlag, case: FlaggedCase) -> str | None:
        """Returns which limit the flag exceeds, or None."""
        options = self._options
        user, category = flag.user_hash, case.category
        per_user = options.per_unnamed if user is None else options.per_user
        if self._users[user] >= per_user:
            owner = "without a user" if user is None else "of one user"
            return f"over the cap of {per_user} flags {owner}"
        if self._categories[category] >= options.per_category:
            return f"over the cap of {options.per_category} flags of one category"
        if self._users.total() >= options.max_flags:
            return f"over the cap of {options.max_flags} flags in a run"
        return None

    def count(self, flag: StoredFlag, case: FlaggedCase) -> None:
        self._users[flag.user_hash] += 1
        self._categories[case.category] += 1


class _NearDuplicates:
    """Near-duplicate requests, found by MinHash over pairs of words."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self._minhash = MinHash
        self._index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._size = 0

    def known(self, case: FlaggedCase) -> str | None:
        """Returns the reason stored with a near-duplicate of this case, or None."""
        return next((key[1] for key in self._index.query(self._hash(case))), None)

    def add(self, case: FlaggedCase, why: str) -> None:
        self._size += 1
        self._index.insert((self._size, why), self._hash(case))

    def _hash(self, case: FlaggedCase) -> Any:
        hashed = self._minhash(num_perm=_PERMUTATIONS)
        hashed.update_batch([shingle.encode() for shingle in _shingles(case.request)])
        return hashed


def _shingles(text: str) -> Iterator[str]:
    words = text.lower().split()
    for start in range(max(1, len(words) - _SHINGLE_WORDS + 1)):
        yield " ".join(words[start : start + _SHINGLE_WORDS])


def case_of(flag: StoredFlag) -> FlaggedCase | None:
    """Converts a flag; returns None if a turn or the answer is not text."""
    messages = [_message(message) for message in flag.messages]
    texts = [message for message in messages if message is not None]
    if len(texts) < len(messages) or not texts or not flag.answer:
        return None
    answer = flag.answer
    if texts[-1]["role"] == "assistant":
        # The caller wrote the beginning of the answer.
        answer = texts.pop()["content"] + answer
    if not texts or texts[-1]["role"] != "user":
        return None
    # Categories come before criteria.
    category = flag.corrected_category or flag.categories[0]
    correction = flag.corrected_answer or None
    return FlaggedCase(flag.id, tuple(texts), answer, category, flag.revision, correction)


def _message(message: Mapping[str, object]) -> Mapping[str, str] | None:
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "\n".join(texts) if len(texts) == len(parts) else None
    if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
        return None
    return {"role": role, "content": content}
