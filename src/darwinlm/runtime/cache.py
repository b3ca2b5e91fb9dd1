"""A memory of what was made before, bounded in bytes; what was not asked for longest goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Values by key, made when they are first asked for.

    Args:
        limit: bytes that the values may take together; a single larger one is not kept.
        size: bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self.limit, self.size = limit, size
        self.bytes = 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key; `make` gives it where it is not here."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        if self.size(value) > self.limit:
            return value
        self._values[key] = value
        self.bytes += self.size(value)
        while self.bytes > self.limit:
            _, gone = self._values.popitem(last=False)
            self.bytes -= self.size(gone)
        return value
