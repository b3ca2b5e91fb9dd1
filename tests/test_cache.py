"""The bounded memory against the definition of what was asked for last: how much was asked for since."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darwinlm.runtime.cache import ByteCache

LIMIT = 10


class Counted(ByteCache[bytes]):
    """A cache of byte strings that knows what had to be made."""

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__(limit, len)
        self.made: list[str] = []

    def ask(self, key: str, size: int) -> bool:
        """Whether the value was still here; it must be that of its key."""
        before = len(self.made)

        def make() -> bytes:
            self.made.append(key)
            return key.encode() * size

        assert self.get(key, make) == key.encode() * size
        return len(self.made) == before


@given(st.lists(st.sampled_from("abcdef")), st.fixed_dictionaries({key: st.integers(0, LIMIT) for key in "abcdef"}))
def test_a_value_is_here_while_it_and_all_asked_for_since_fit(asked: list[str], sizes: dict[str, int]) -> None:
    cache = Counted()
    for now, key in enumerate(asked):
        last = max((i for i in range(now) if asked[i] == key), default=None)
        fits = last is not None and sum(sizes[k] for k in set(asked[last:now])) <= LIMIT
        assert cache.ask(key, sizes[key]) == fits
        assert 0 <= cache.bytes <= LIMIT


def test_what_was_not_asked_for_longest_goes_first() -> None:
    cache = Counted()
    for key in "abca":
        cache.ask(key, 3)
    cache.ask("d", 4)  # room for two others
    assert [cache.ask(key, 3) for key in "ac"] == [True, True]
    assert not cache.ask("b", 3)


@pytest.mark.parametrize("limit", [0, 4])
def test_a_value_larger_than_the_limit_is_not_kept(limit: int) -> None:
    cache = Counted(limit)
    assert [cache.ask("a", 5) for _ in range(3)] == [False] * 3
    assert cache.bytes == 0
    assert not cache.ask("b", limit)
    assert cache.ask("b", limit)


def test_a_value_that_cannot_be_made_leaves_nothing_behind() -> None:
    cache = Counted()

    def fails() -> bytes:
        raise OSError("gone")

    make: Callable[[], bytes] = fails
    with pytest.raises(OSError, match="gone"):
        cache.get("a", make)
    assert not cache.ask("a", 3)
    assert cache.bytes == 3
