"""Which flags are too many or too alike to learn from. Owns the caps of what each user and category
may contribute, and the search for near-duplicate requests. Does not choose flags (collect.py,
collect_criteria.py).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from guard.store.flags import StoredFlag
from refine.options import RefineOptions

_PERMUTATIONS = 64
_SHINGLE_WORDS = 2


class Caps:
    """The limits of how many flags each user and category may contribute."""

    def __init__(self, options: RefineOptions) -> None:
        self._options = options
        self._users: Counter[str | None] = Counter()
        self._categories: Counter[str] = Counter()

    def exceeded(self, flag: StoredFlag, category: str) -> str | None:
        """Returns which limit the flag exceeds, or None."""
        options = self._options
        user = flag.user_hash
        per_user = options.per_unnamed if user is None else options.per_user
        if self._users[user] >= per_user:
            owner = "without a user" if user is None else "of one user"
            return f"over the cap of {per_user} flags {owner}"
        if self._categories[category] >= options.per_category:
            return f"over the cap of {options.per_category} flags of one category"
        if self._users.total() >= options.max_flags:
            return f"over the cap of {options.max_flags} flags in a run"
        return None

    def count(self, flag: StoredFlag, category: str) -> None:
        """Counts a flag that is learned from."""
        self._users[flag.user_hash] += 1
        self._categories[category] += 1


class NearDuplicates:
    """Near-duplicate requests, found by MinHash over pairs of words."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self._minhash = MinHash
        self._index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._size = 0

    def known(self, request: str) -> str | None:
        """Returns the reason stored with a near-duplicate of a request, or None."""
        return next((key[1] for key in self._index.query(self._hash(request))), None)

    def add(self, request: str, why: str) -> None:
        """Stores a request, and why its near-duplicates are left out."""
        self._size += 1
        self._index.insert((self._size, why), self._hash(request))

    def _hash(self, request: str) -> Any:
        hashed = self._minhash(num_perm=_PERMUTATIONS)
        hashed.update_batch([shingle.encode() for shingle in _shingles(request)])
        return hashed


def _shingles(text: str) -> Iterator[str]:
    words = text.lower().split()
    for start in range(max(1, len(words) - _SHINGLE_WORDS + 1)):
        yield " ".join(words[start : start + _SHINGLE_WORDS])
