"""Text as it lies on people's disks: every kind, encoding and compression is read right, or refused in one sentence.

DARWINLM_TEXT_EXAMPLES=5000 looks at so many random files instead of a few.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from darwinlm.data import files
from darwinlm.data.sources import documents
from darwinlm.errors import RequestError
from darwinlm.runtime.progress import warn_once

EXAMPLES = int(os.environ.get("DARWINLM_TEXT_EXAMPLES", "0"))
MANY = settings(
    max_examples=EXAMPLES or 150, derandomize=not EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
)
COMPRESSION: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda raw: pyarrow.compress(raw, "zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def _table(texts: list[Any], delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate(texts)])
    return out.getvalue()


WRITERS: dict[str, Callable[[list[Any]], str]] = {
    ".jsonl": lambda texts: "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)),
    ".ndjson": lambda texts: "\r\n".join(json.dumps({"text": t}, ensure_ascii=_halved(t)) for t in texts),
    ".json": lambda texts: json.dumps([{"text": t} for t in texts]),
    ".JSON": lambda texts: "\n\n".join(json.dumps({"text": t}, indent=2) for t in texts),
    ".json ": lambda texts: "".join(json.dumps({"text": t}) + "\n" for t in texts),
    ".csv": lambda texts: _table(texts, ","),
    ".tsv": lambda texts: _table(texts, "\t"),
}


def _halved(text: str | None) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text or "")


def read(path: Path, **options: Any) -> list[str]:
    return list(documents(str(path), "text", **options))


def right(texts: list[Any]) -> list[str]:
    """Whole characters of the rows that have some."""
    whole = [t.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for t in texts if t]
    return [text for text in whole if text.strip()]


PLAIN = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(' \n\r\t",;{}[]é\ufeff\0'), max_size=30)
HALVED = st.text(st.sampled_from("\ud83d\ude00ab"), max_size=5)


@MANY
@given(
    texts=st.lists(st.none() | PLAIN | HALVED, max_size=6),
    kind=st.sampled_from([*WRITERS, ".parquet"]),
    packed=st.sampled_from(list(COMPRESSION)),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    damage=st.none() | st.tuples(st.sampled_from(["cut", "flip", "line"]), st.floats(0, 0.999)),
)
def test_rows(texts, kind, packed, encoding, damage) -> None:
    """Undamaged, what was written; damaged, the rows before or a sentence; and a training is never ended by it."""
    if kind in (".csv", ".tsv", ".parquet"):
        texts = [None if _halved(t) else t for t in texts]  # they have no way to write these
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{kind.strip()}{packed if kind != '.parquet' else ''}")
        if kind == ".parquet":
            kinds = [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
            column = pyarrow.array(texts, random.Random(len(texts)).choice(kinds))
            parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": column}), path)
        else:
            path.write_bytes(COMPRESSION[packed](WRITERS[kind](texts).encode(encoding)))
        raw = path.read_bytes()
        if damage and raw:
            what, share = damage
            place = int(share * len(raw))
            garbage = {
                "cut": b"",
                "flip": bytes([raw[place] ^ 0x55]) + raw[place + 1 :],
                "line": b"\n{oops\n" + raw[place:],
            }
            path.write_bytes(raw[:place] + garbage[what])
        lenient = read(path, strict=False)
        assert "".join(lenient).encode() is not None
        try:
            found = read(path)
        except RequestError as fault:
            zero = kind in (".csv", ".tsv") and any("\0" in (t or "") for t in texts)
            assert damage or zero, fault  # noqa: PT017
            assert len(fault.faults) == 1  # noqa: PT017
            assert str(path) in str(fault)  # noqa: PT017
            return
        if not damage:
            assert found == right(texts)
            assert lenient == found
        elif damage[0] == "cut" and kind in (".jsonl", ".ndjson", ".json"):
            assert found == right(texts)[: len(found)]


@MANY
@given(
    text=PLAIN,
    packed=st.sampled_from(list(COMPRESSION)),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "latin-1"]),
)
def test_plain_text(text, packed, encoding) -> None:
    """One document with line ends of its own, without its mark; what cannot be known to be right is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file.txt{packed}")
        raw = text.encode(encoding, "ignore")
        path.write_bytes(COMPRESSION[packed](raw))
        assume(encoding != "latin-1" or raw[:2] not in (b"\xff\xfe", b"\xfe\xff"))  # as a mark says
        with suppress(UnicodeDecodeError):  # bytes that are UTF-8 are taken for it
            if encoding in ("latin-1", "utf-16-le") and b"\0" not in raw and raw.decode("utf-8") is not None:
                encoding = "utf-8"
        truth = raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        truth = truth.removeprefix("\ufeff") if encoding in ("utf-8", "utf-16-le") else truth
        try:
            assert "".join(read(path)) == (truth if truth.strip() else "")
        except RequestError as fault:
            assert encoding in ("utf-16-le", "latin-1") or "\0" in text
            assert str(path) in str(fault)  # noqa: PT017


def test_a_folder_never_loses_a_file_without_a_word(tmp_path, caplog):
    warn_once.cache_clear()
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "disk"
    for folder in (corpus / "deep", corpus / ".cache", elsewhere):
        folder.mkdir(parents=True)
    (corpus / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": ""}\n')
    (corpus / "README.md").write_text("---\nlicense: mit\n---")
    (corpus / "b.pdf").write_text("%PDF")
    (corpus / ".DS_Store").write_text("x")
    (corpus / "deep" / "c.TXT.gz").write_bytes(gzip.compress(b"two"))
    (corpus / "deep" / "up").symlink_to(corpus)
    (elsewhere / "d.md").write_text("three")
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "again").symlink_to(elsewhere)
    assert read(corpus) == ["one", "three", "two"]
    assert read(corpus) == ["one", "three", "two"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert ".pdf (1), README.md, a data set's card (1), hidden (1), hidden folder (1)" in said[0]
    assert f"2 rows without text (first: '{corpus / 'a.jsonl'}', line 2)" in said[1]
    (corpus / "gone").symlink_to(tmp_path / "unplugged")
    with pytest.raises(RequestError, match="gone' is a link to nothing"):
        read(corpus)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "y"', r"a\.jsonl', line 2 is not valid JSON"),
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}", "line 1 is not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
        ("a.json", b'[{"text": "x"}, {"text"', "is not valid JSON"),
        ("a.json", b'{"data": [{"text": "x"}]}', "Fields there: data"),
        ("a.csv", b"text,id\nfirst, second,3\n", "line 2 has more fields than the first line names. Quote the text"),
        ("a.csv", b'text,id\n"never closed,3\n', "cannot be read"),
        ("a.csv", b"", "Fields there: none"),
        ("a.txt", "Zwölf".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("a.txt", "Zwölf".encode("latin-1"), r"is not UTF-8 text.*iconv"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999, mtime=0)[:-9], "cannot be read: Truncated"),
        ("a.jsonl.zst", b"no zstd at all", "cannot be read"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.tar.gz", b"", "of no kind that can be read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=said) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    if name != "a.tar.gz":
        assert set(read(tmp_path / name, strict=False)) <= {"x", "Zw\ufffdlf"}


def test_a_training_loses_the_bad_row_and_says_so(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{oops\n{"txt": "y"}\n{"text": "caf\xe9"}\n{"text": "z"}\n')
    assert read(tmp_path / "a.jsonl", strict=False) == ["x", "caf\ufffd", "z"]
    said = "\n".join(record.getMessage() for record in caplog.records)
    for part in ("line 2 is not valid JSON", "1 row of no valid JSON", "1 row without a text field", "U+FFFD"):
        assert part in said


def test_a_row_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_CHARACTERS", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 200)
    (tmp_path / "b.json").write_text("[\n" + '{"text": "x"},\n' * 20)
    for name, said in (("a.jsonl", "line 1 is longer than 100 characters"), ("b.json", "too large for one JSON value")):
        with pytest.raises(RequestError, match=said):
            read(tmp_path / name)


def test_the_first_of_several_fields_counts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n{"text": "y", "content": "no"}\n')
    parquet.write_table(pyarrow.table({"content": ["z"]}), tmp_path / "b.parquet")
    assert list(documents(str(tmp_path), "text, content")) == ["x", "y", "z"]


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(RequestError, match="a pipe will not do"):
        read(tmp_path / "pipe.txt")


# Mixtures


def test_a_mixture_keeps_its_shares_and_loses_nothing(tmp_path):
    for name, letter, count in (("a", "a", 90), ("b", "b", 400)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": letter * 10}) + "\n" for _ in range(count)))
    mixed = list(documents(f"{tmp_path}/a.jsonl=0.3, {tmp_path}/b.jsonl=0.7", "text"))
    assert [sum(text[0] == letter for text in mixed) for letter in "ab"] == [90, 400]
    for count in (10, 100, 300):
        assert abs(sum(text[0] == "a" for text in mixed[:count]) - 0.3 * count) <= 1


def test_long_files_do_not_crowd_out_others(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PART_CHARACTERS", 100)
    for letter in "ab":
        (tmp_path / f"{letter}.txt").write_text((letter * 9 + "\n") * 100)
    mixed = list(documents(f"{tmp_path}/a.txt,{tmp_path}/b.txt=3", "text"))
    assert not any(isinstance(text, files.Rest) for text in mixed)
    assert sum(text[0] == "a" for text in mixed[:8]) == 2


def test_a_path_with_commas_is_a_path(tmp_path):
    (tmp_path / "a,b=2.txt").write_text("words")
    assert read(tmp_path / "a,b=2.txt") == ["words"]


@pytest.mark.parametrize(
    "weights", ["a.txt=0,b.txt", "a.txt=-1,b.txt", "a.txt,,b.txt", "a.txt,a.txt=2", "=2", "a.txt=1.2.3"]
)
def test_impossible_mixtures(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(RequestError, match="is no mixture of texts"):
        documents(weights, "text")
