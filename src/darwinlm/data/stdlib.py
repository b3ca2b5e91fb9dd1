"""The Python source on this machine as a small corpus that needs no download.

Files are assigned to the fitted or the held-out part by a hash of their path, so the two parts are
disjoint and stay so across Python versions. The embedded demo model was trained on the fitted part only.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT_SHARE = 1 / 16
"""Share of the files that no one may fit anything to."""

_TABLES = ("encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__", "lib2to3", "turtledemo")
_TESTS = ("test", "tests", "idle_test")


def is_held_out(relative_path: str) -> bool:
    """Whether the file belongs to the held-out part, decided by its path alone."""
    first = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:4], "big")
    return first < HELD_OUT_SHARE * 2**32


def stdlib_documents(*, held_out: bool, tests: bool = False) -> Iterator[str]:
    """Yield the text of one part's files in the order of their paths.

    Args:
        held_out: the held-out part instead of the fitted one.
        tests: also the library's own test suites, where they are installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if any(part in _TABLES or (not tests and part in _TESTS) for part in relative.parts):
            continue
        if is_held_out(relative.as_posix()) == held_out:
            yield path.read_text(encoding="utf-8", errors="replace")
