"""Windows overlap, cover every token and keep their size; a stream's windows grow to a limit."""

from hypothesis import given
from hypothesis import strategies as st

from guard.windows import Windows, overlapping_windows


@given(length=st.integers(0, 400), size=st.integers(1, 80))
def test_every_token_is_in_a_window_of_at_most_the_size(length: int, size: int) -> None:
    tokens = list(range(length))
    cut = list(overlapping_windows(tokens, size))
    assert cut
    assert all(len(window) <= size for window in cut)
    assert set().union(*map(set, cut)) == set(tokens)


@given(length=st.integers(10, 400), size=st.integers(8, 80))
def test_neighbouring_windows_overlap(length: int, size: int) -> None:
    cut = [set(window) for window in overlapping_windows(list(range(length)), size)]
    assert all(len(one & other) >= size // 4 for one, other in zip(cut, cut[1:], strict=False))


def test_a_text_that_fits_is_one_window() -> None:
    assert [list(w) for w in overlapping_windows([1, 2, 3], 3)] == [[1, 2, 3]]
    assert [list(w) for w in overlapping_windows([], 3)] == [[]]


def test_windows_grow_to_their_limit() -> None:
    windows = Windows(first=8, growth=2, limit=20)
    sizes = [windows.first]
    for _ in range(3):
        sizes.append(windows.after(sizes[-1]))
    assert sizes == [8, 16, 20, 20]


@given(judged=st.integers(0, 300), new=st.integers(0, 300), limit=st.integers(1, 80))
def test_no_verdict_covers_more_than_the_limit(judged: int, new: int, limit: int) -> None:
    windows, length = Windows(first=8, growth=2, limit=limit), judged + new
    ends = [judged, *windows.cuts(judged, length), length]
    assert all(0 <= later - one <= limit for one, later in zip(ends, ends[1:], strict=False))
    assert new > limit or ends == [judged, length]


@given(length=st.integers(0, 20_000))
def test_an_answer_in_doubt_is_cut_closely_but_not_without_bound(length: int) -> None:
    ends = list(Windows(first=8, growth=2, limit=256).close_cuts(length))
    assert len(ends) <= 64
    assert ends == sorted(set(ends))
    assert len(ends) >= 2 or length <= 8
    assert not 64 <= length <= 1024 or all(end % 16 == 0 for end in ends)
