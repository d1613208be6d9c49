"""Windows cover every token, overlap, and stay within their size."""

from hypothesis import given
from hypothesis import strategies as st

from guard.windows import windows


@given(length=st.integers(0, 400), size=st.integers(1, 80))
def test_every_token_is_in_a_window_of_at_most_the_size(length: int, size: int) -> None:
    tokens = list(range(length))
    cut = list(windows(tokens, size))
    assert cut
    assert all(len(window) <= size for window in cut)
    assert set().union(*map(set, cut)) == set(tokens)


@given(length=st.integers(10, 400), size=st.integers(8, 80))
def test_neighbouring_windows_overlap(length: int, size: int) -> None:
    cut = [set(window) for window in windows(list(range(length)), size)]
    assert all(len(one & other) >= size // 4 for one, other in zip(cut, cut[1:], strict=False))


def test_what_fits_is_one_window() -> None:
    assert [list(w) for w in windows([1, 2, 3], 3)] == [[1, 2, 3]]
    assert [list(w) for w in windows([], 3)] == [[]]
