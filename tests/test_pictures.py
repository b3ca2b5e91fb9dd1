"""The picture of a database's errors, and the two commands that look at one without its model."""

from __future__ import annotations

import pytest

from darwinlm.cli import main
from darwinlm.measure.pictures import draw_errors


def test_the_picture_is_a_png_and_the_same_twice(database, tmp_path):
    for name in ("one.png", "two.png"):
        draw_errors(database("llama_gqa", "kv_group"), tmp_path / name)
    drawn = (tmp_path / "one.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn == (tmp_path / "two.png").read_bytes()


def test_check_and_show_need_the_run_alone(database, tmp_path, capsys):
    built = database("llama_gqa", "kv_group")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/database").symlink_to(built.folder)
    main(["database", "--output", str(tmp_path / "run"), "--check"])
    assert "All 6 files" in capsys.readouterr().out
    main(["database", "--output", str(tmp_path / "run"), "--show"])
    printed = capsys.readouterr().out
    assert "layers.2.mlp" in printed
    assert (built.folder / "errors.png").exists()


def test_check_names_what_is_damaged(database, source, tmp_path, capsys):
    import pico

    built = pico.make_database(tmp_path / "run/database", source("qwen3"), "kv_group")
    victim = built.folder / "model.layers.1.mlp.safetensors"
    victim.unlink()
    with pytest.raises(SystemExit) as exit_:
        main(["database", "--output", str(tmp_path / "run"), "--check"])
    assert exit_.value.code == 2
    assert str(victim) in capsys.readouterr().err
