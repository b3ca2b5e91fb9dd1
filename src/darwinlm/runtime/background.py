"""A thread beside the work, which ends with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(work: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Do something in a thread of its own until the block ends.

    Args:
        work: is given an event, and must return soon after that is set.
        name: of the thread.
    """
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=f"darwinlm-{name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
