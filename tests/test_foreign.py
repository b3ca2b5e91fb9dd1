"""Masked models and the authors' level databases become checkpoints that compute what masking by hand gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.cli import main
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.foreign.masked import import_model

OUTPUTS = {"attention": "o_proj", "mlp": "down_proj"}
TOKENS = pico.random_tokens(2, 16, seed=5)


def authors_database(folder: Path, database, checkpoint: Path) -> Path:
    """`<matrix>/<level>.pth`: whole matrices with zeros, level 0 the dense one, the last one all zeros."""
    dense = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for ladder in database.ladders():
        matrix = f"{ladder.name}.{OUTPUTS[ladder.kind]}"
        weight = dense.get_submodule(matrix).weight.detach()
        (folder / matrix).mkdir(parents=True)
        for level in range(ladder.top + 1):
            masked = torch.zeros_like(weight)
            if level == 0:
                masked.copy_(weight)
            elif level < ladder.top:
                masked[:, database.kept(ladder.name, level)] = database.weight(ladder.name, level)
            torch.save(masked, folder / matrix / f"{level}.pth")
    return folder


def configuration(path: Path, database, genome) -> Path:
    pairs = zip(database.ladders(), genome, strict=True)
    path.write_text("".join(f"{ladder.name}.{OUTPUTS[ladder.kind]}: {level}\n" for ladder, level in pairs))
    return path


def genome_with_absent(database) -> tuple[int, ...]:
    """Every level occurs; the first MLP and the last attention are gone."""
    gone = {"model.layers.0.mlp", "model.layers.2.self_attn"}
    return tuple(l.top if l.name in gone else i % l.top for i, l in enumerate(database.ladders()))


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize(
    ("family", "unit"),
    [("llama_mha", "auto"), ("llama_gqa", "kv_group"), ("qwen2", "query_head"), ("mistral", "balanced")],
)
def test_the_authors_database_gives_the_masked_model(family, unit, database, checkpoint, tmp_path, capsys):
    levels = database(family, unit)
    genome = genome_with_absent(levels)
    folder = authors_database(tmp_path / "db", levels, checkpoint(family))
    text = configuration(tmp_path / "evo-kl-configuration-3.0.txt", levels, genome)
    out = tmp_path / "imported"
    main(
        ["import", str(folder), "--model", str(checkpoint(family)), "--configuration", str(text), "--output", str(out)]
    )
    assert "0 of 48" in capsys.readouterr().out
    with torch.no_grad():
        expected = pico.zero_masked(checkpoint(family), levels, genome)(TOKENS).logits
    torch.testing.assert_close(logits(out), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama_mha", "llama_gqa", "llama_bias", "qwen2_tied", "qwen3", "mistral"])
def test_a_masked_checkpoint_becomes_smaller_and_computes_the_same(family, database, checkpoint, source, tmp_path):
    levels = database(family, "auto")
    masked = pico.zero_masked(checkpoint(family), levels, genome_with_absent(levels))
    with torch.no_grad():  # other ways of saying that something is gone
        masked.model.layers[1].mlp.up_proj.weight[:5] = 0
        masked.model.layers[1].self_attn.v_proj.weight[: source(family).shape.head_dim] = 0
        for linear, rows in ((masked.model.layers[1].mlp.up_proj, 5), (masked.model.layers[1].self_attn.v_proj, None)):
            if linear.bias is not None:
                linear.bias[: rows or source(family).shape.head_dim] = 0
        expected = masked(TOKENS).logits
    masked.save_pretrained(tmp_path / "masked")
    pico.tokenizer().save_pretrained(tmp_path / "masked")
    found = darwinlm.import_checkpoint(tmp_path / "masked", tmp_path / "out").found
    torch.testing.assert_close(logits(tmp_path / "out"), expected, atol=1e-4, rtol=1e-4)
    assert found.after.layers[0].intermediate == 0
    assert found.after.layers[2].heads == found.after.layers[2].kv_heads == 0
    assert found.after.layers[1].intermediate <= 43
    assert found.after.layers[1].kv_heads < found.before.layers[1].kv_heads
    held = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert sum(p.numel() for p in held.parameters()) == found.after.parameters


def test_a_bias_outlives_its_zero_matrix(tmp_path):
    """o has a bias: an attention without a live head still adds it, so it must not go."""
    model = pico.random_model("llama_bias")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        expected = model(TOKENS).logits
    model.save_pretrained(tmp_path / "masked")
    pico.tokenizer().save_pretrained(tmp_path / "masked")
    found = import_model(str(tmp_path / "masked"), str(tmp_path / "out"))
    assert found.after.layers[1].heads == 1
    torch.testing.assert_close(logits(tmp_path / "out"), expected, atol=1e-4, rtol=1e-4)


def test_requests_that_cannot_be(database, checkpoint, tmp_path):
    dense = str(checkpoint("llama_mha"))
    levels = database("llama_mha", "auto")
    folder = authors_database(tmp_path / "db", levels, checkpoint("llama_mha"))
    text, out = tmp_path / "levels.txt", tmp_path / "out"
    configuration(text, levels, genome_with_absent(levels))
    first = "model.layers.0.self_attn.o_proj"

    def refused(reason: str, content: str | None = None, fault: type[Exception] = RequestError, **options) -> None:
        if content is not None:
            text.write_text(content)
        request = {"source": str(folder), "output": str(out), "model": dense, "configuration": str(text)} | options
        with pytest.raises(fault, match=reason):
            import_model(**request)
        assert not out.exists()

    refused("add --model", model="")
    refused("add --configuration", configuration="")
    refused("no such file|Cannot read", configuration=str(tmp_path / "none.txt"))
    refused("Line 1 of", "nonsense\n")
    refused(r"asks for level 99 of 'model.layers.0.self_attn.o_proj', but .* has of it \[0, 1", f"{first}: 99\n")
    refused("no output matrix of the model", "model.layers.7.mlp.down_proj: 1\n")
    refused("nothing to cut out", f"{first}: 0\n")
    refused("no level database", source=dense)
    refused("nothing to cut out", source=dense, model="", configuration="")
    torch.save(torch.zeros(3, 4), folder / first / "1.pth")
    refused(r"holds \(3, 4\)", f"{first}: 1\n", DamagedFileError)
    (folder / first / "1.pth").write_bytes(b"not a pickle")
    refused("is damaged", fault=DamagedFileError)
    torch.save({"run": print}, folder / first / "1.pth")
    refused("holds more than tensors", fault=DamagedFileError)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match="has not made"):
        import_model(str(folder), str(out), model=dense, configuration=str(text))
    assert (out / "thesis.txt").read_text() == "mine"
