"""One pass over a source: which field holds the text, and what is left out on the way, counted and said."""

from __future__ import annotations

import re
from typing import Any

from darwinlm.errors import RequestError
from darwinlm.runtime.progress import warn_once

_SURROGATE = re.compile("[\ud800-\udfff]")


class Reading:
    """What a pass over a source looks for, and what it met.

    Rows without text (null, empty, blank) are left out. Halves of a pair of UTF-16 become U+FFFD.

    Args:
        source: as it was named.
        text_field: names of fields with commas; the first one that a row has holds its text.
        strict: refuse what cannot be read; else it is left out, too, so that a training is not ended by it.
    """

    def __init__(self, source: str, text_field: str, *, strict: bool = True) -> None:
        self.source, self.strict = source, strict
        self.fields = [name.strip() for name in text_field.split(",")]
        self._counts: dict[str, tuple[int, str]] = {}

    def text(self, row: Any, where: str) -> str | None:
        """The text of a row; None where the row is left out.

        Raises:
            RequestError: it has no such field, and the pass is strict.
        """
        name = next((name for name in self.fields if name in row), None) if isinstance(row, dict) else None
        value = row[name] if name is not None else 0
        if value is not None and not isinstance(value, str):
            self.fault(self.no_field(list(row) if isinstance(row, dict) else [], where), "without a text field", where)
            return None
        if not value or value.isspace():
            self.count("without text", where)
            return None
        return self.mended(value, where)

    def mended(self, text: str, where: str) -> str:
        """The text as characters that a tokenizer takes."""
        if text.isascii():
            return text
        whole, halves = _SURROGATE.subn("\ufffd", text)
        if halves:
            self.count("with half a character, read as U+FFFD", where)
        return whole

    def no_field(self, there: list[str], where: str) -> RequestError:
        """The fault of a row or file without the field."""
        named = " or ".join(f"'{name}'" for name in self.fields)
        listed = ", ".join(map(str, there)) or "none"
        return RequestError(f"{where} has no text in a field {named}; set blocks.text_field. Fields there: {listed}.")

    def fault(self, fault: RequestError, what: str, where: str) -> None:
        """Refuse what cannot be read, or leave it out.

        Args:
            fault: what a strict pass raises.
            what: left-out rows of this kind, in words.
            where: file and line.
        """
        if self.strict:
            raise fault
        if what not in self._counts:
            warn_once(f"Left out: {fault}")
        self.count(what, where)

    def count(self, what: str, where: str) -> None:
        """One more row of a kind that is left out or altered."""
        known, first = self._counts.get(what, (0, where))
        self._counts[what] = known + 1, first

    def say(self) -> None:
        """Say what was left out."""
        if self._counts:
            kinds = self._counts.items()
            listed = "; ".join(
                f"{n:,} {'row' if n == 1 else 'rows'} {what} (first: {where})" for what, (n, where) in kinds
            )
            warn_once(f"Not read as it stands in '{self.source}': {listed}.")
