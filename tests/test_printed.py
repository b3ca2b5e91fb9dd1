"""What is printed can be pasted: paths with spaces, apostrophes and brackets are whole, and names steer no terminal."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import pico
from darwinlm.cli import main, read
from darwinlm.runtime.output import PlainConsole, harmless, pasted
from darwinlm.runtime.progress import log
from darwinlm.show.measured import without_common_folder
from darwinlm.show.result import empty_table

HOSTILE = "\x1b[31mred\x1b[0m \x07 \u202etxt [/bold] [red] :smile: 模型"
FOLDER = "Müller's models [pruned] [/x] 模型 " + "that are far from here " * 5
FLAGS = [
    "--device=cpu",
    *(f"--blocks.{name}={value}" for name, value in pico.RUN["blocks"].items()),
    *("--database.levels=4", "--database.multiple_of=4", "--target.level=2", "--search.generations=1"),
    *("--search.offspring=2", "--search.survivors=[1]", "--search.train_tokens=[64]", "--search.select_tokens=[64]"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A masked model and a text in a folder that is hard to type."""
    folder = tmp_path_factory.mktemp("printed") / FOLDER.strip()
    folder.mkdir(parents=True)
    pico.make_checkpoint(folder / "a model", "llama_gqa")
    model = AutoModelForCausalLM.from_pretrained(folder / "a model", dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, ::2] = 0
        model.model.layers[2].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder / "a model")
    (folder / "some text.txt").write_text("".join(f"{number} and {number * number}; " for number in range(1000)))
    return folder


def next_of(printed: str) -> list[str]:
    """The words that a shell makes of the next command."""
    (line,) = [line for line in printed.splitlines() if line.startswith("Next: ")]
    return shlex.split(line.removeprefix("Next: "))


def paths_of(printed: str) -> set[Path]:
    """Words of the output that are paths here."""
    found = set()
    for line in printed.splitlines():
        try:
            found |= {Path(word) for word in shlex.split(line) if word.startswith("/")}
        except ValueError:  # an apostrophe of prose
            continue
    return found


def test_import_and_export(folder, capsys):
    main(["import", str(folder / "a model"), "--output", str(folder / "imported")])
    printed = capsys.readouterr().out
    assert folder / "imported" in paths_of(printed)
    assert next_of(printed) == ["darwinlm", "eval", str(folder / "imported"), "--against", "MODEL", "--data", "TEXT"]
    main(["export", str(folder / "imported"), "--portable"])
    printed = capsys.readouterr().out
    assert {folder / "imported", folder / "imported-portable"} <= paths_of(printed)


def test_prune_and_what_comes_after_it(folder, capsys):
    arguments = [
        str(folder / "a model"),
        "--data",
        str(folder / "some text.txt"),
        "--output",
        str(folder / "run"),
        *FLAGS,
    ]
    main(["prune", *arguments])
    printed = capsys.readouterr().out
    assert folder / "run/report.html" in paths_of(printed)
    _, name, *words = next_of(printed)
    given = read(name, words).arguments
    assert (given["model"], given["against"]) == (str(folder / "run/model"), str(folder / "a model"))
    main(["search", "--output", str(folder / "run")])
    assert next_of(capsys.readouterr().out)[-1] == str(folder / "run")
    main(["eval", str(folder / "run/model")])
    assert folder / "run/eval.json" in paths_of(capsys.readouterr().out)
    main(["report", str(folder / "run")])
    assert folder / "run/report.html" in paths_of(capsys.readouterr().out)
    for command in (
        ["prune", *arguments],
        ["eval", str(folder / "run/model")],
        ["plan", str(folder / "a model"), *FLAGS],
    ):
        main([*command, "--json"])
        assert json.loads(capsys.readouterr().out)
    for name in ("database --check", "search", "refit", "export", "report"):
        main([*name.split(), str(folder / "run") if "--" not in name else f"--output={folder / 'run'}", "--json", "-q"])
        found = json.loads(capsys.readouterr().out)
        assert str(folder / "run") in json.dumps(found, ensure_ascii=False)
    shutil.rmtree(folder / "run/database")
    with pytest.raises(SystemExit):
        main(["search", "--output", str(folder / "run")])
    assert f"--output {pasted(folder / 'run')}`" in capsys.readouterr().err


def test_names_are_text(capsys):
    table = empty_table(HOSTILE, HOSTILE, "b")
    table.add_row(HOSTILE, "1")
    table.caption = HOSTILE
    plain = PlainConsole(width=200, force_terminal=True)
    plain.show(table, HOSTILE)
    printed = capsys.readouterr().out
    assert printed.count("[/bold] [red] :smile: 模型") == 5
    assert "\x1b[31m" not in printed
    assert "\x07" not in printed
    assert "\u202e" not in printed
    assert harmless("two\nlines, मराठी, 👩\u200d💻") == "two\nlines, मराठी, 👩\u200d💻"


def test_messages_and_log_lines_steer_no_terminal(capsys, caplog):
    for arguments in (["plan", HOSTILE], [HOSTILE], ["prune", "--output", HOSTILE, "--nosuch", HOSTILE]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        assert "\x1b" not in capsys.readouterr().err
    with caplog.at_level(logging.INFO, "darwinlm"):
        log.info("Reading '%s'.", HOSTILE)
    assert "\\x1b[31mred" in caplog.messages[-1]


def test_models_of_one_folder_are_named_without_it() -> None:
    names = ["dense", "/far/away/a/model", "/far/away/b/model", "Qwen/Qwen3-0.6B"]
    assert list(without_common_folder(names).values()) == ["dense", "a/model", "b/model", "Qwen/Qwen3-0.6B"]
    assert without_common_folder(["/far/model"]) == {"/far/model": "/far/model"}
