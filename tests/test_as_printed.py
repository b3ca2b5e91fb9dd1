"""What people paste: loading code as README, card and report print it, and stock code that meets a checkpoint of ours.

All of it runs in processes without DarwinLM. DARWINLM_TRANSFORMERS names a folder with another transformers for them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.export.huggingface import export_checkpoint
from darwinlm.models.source import ModelSource
from test_report import SETTINGS, page

README = Path(__file__).parent.parent / "README.md"
CLEAN = 'import sys; sys.modules["darwinlm"] = None\n'
STOCK = """
import os, torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
tokens, results = load_file(sys.argv[1])["tokens"], {}


def checked(folder, gone):
    AutoConfig.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"], folder
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError as fault:
        assert ("per-layer attribute" in str(fault)) == gone, (folder, fault)
    else:
        raise SystemExit(f"stock code loaded {folder} in silence")
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


for folder in sys.argv[2:]:
    name = os.path.basename(folder)
    model = checked(folder, name.startswith("gone"))
    model.save_pretrained(folder + "-saved")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder + "-saved")
    with torch.no_grad():
        results[name] = model(tokens).logits
        assert torch.equal(checked(folder + "-saved", name.startswith("gone"))(tokens).logits, results[name])
save_file(results, sys.argv[1])
"""


def run(code: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """What a process without DarwinLM prints."""
    environment = {**os.environ, "PYTHONPATH": os.environ.get("DARWINLM_TRANSFORMERS", ""), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", CLEAN + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def genomes(database) -> dict[str, tuple[int, ...]]:
    """Narrower modules, modules that are gone, and both."""
    ladders = database.ladders()
    gone = {"model.layers.0.self_attn", "model.layers.1.mlp", "model.layers.2.self_attn", "model.layers.2.mlp"}
    return {
        "narrow": tuple(1 + i % 2 for i in range(len(ladders))),
        "gone": tuple(ladder.top if ladder.name in gone else 0 for ladder in ladders),
        "gone_attention": tuple(ladder.top if i == 2 else 0 for i, ladder in enumerate(ladders)),
        "both": tuple(ladder.top if ladder.name in gone else 1 for ladder in ladders),
    }


@pytest.mark.parametrize(
    "family",
    ["llama_gqa", "llama_one_kv_head", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "cohere2", "granite"],
)
def test_stock_code_reads_tokenizer_and_configuration_and_never_loads_other_weights(family, checkpoint, tmp_path):
    one = {"num_key_value_heads": 1} if family == "llama_one_kv_head" else {}
    dense = pico.make_checkpoint(tmp_path / "dense", "llama_gqa", **one) if one else checkpoint(family)
    source, tokens, expected = ModelSource(str(dense)), pico.random_tokens(2, 16, seed=3), {}
    levels = pico.make_database(tmp_path / "database", source, "query_head" if one else "auto")
    for name, genome in genomes(levels).items():
        export_checkpoint(Assembler(source, levels), genome, tmp_path / name, {}, {})
        with torch.no_grad():
            expected[name] = pico.zero_masked(dense, levels, genome)(tokens).logits
    save_file({"tokens": tokens}, tmp_path / "exchange")
    run(STOCK, tmp_path / "exchange", *(tmp_path / name for name in expected))
    found = load_file(tmp_path / "exchange")
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, atol=1e-4, rtol=1e-4)


def test_loading_code_runs_as_it_is_printed(checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    darwinlm.prune(str(checkpoint("llama_gqa")), data=str(text), output="runs/qwen3", **SETTINGS)
    model, using = Path("runs/qwen3/model"), "\nprint(type(model).__name__)"
    card = re.findall(r"```python\n(.*?)```", (model / "README.md").read_text(), re.S)
    readme = [
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "from_pretrained" in block
    ]
    report = [part for part in page(model.parent).texts if "from_pretrained" in part]
    assert (len(card), len(readme), len(report)) == (1, 1, 1)
    for code in (card[0].replace("PATH", str(model)), *readme, *report):
        told = run(f"sys.stderr = sys.stdout\n{code}{using}", cwd=tmp_path)
        assert told.split()[-1] == "DarwinLMForCausalLM"
        assert "per-layer attribute" not in told


def test_a_model_of_many_layers_is_read_again(tmp_path):
    """transformers writes layer 1 of 12 as 01."""
    dense = ModelSource(str(pico.make_checkpoint(tmp_path / "dense", "llama_gqa", num_hidden_layers=12)))
    levels = pico.make_database(tmp_path / "database", dense, levels=2)
    genome = tuple(1 for _ in levels.ladders())
    export_checkpoint(Assembler(dense, levels), genome, tmp_path / "model", {}, {})
    assert ModelSource(str(tmp_path / "model")).shape.layers[11].heads < 8


def test_an_older_transformers_is_told_what_is_needed(source, tmp_path):
    from darwinlm.models.heterogeneous import modeling_source

    code = modeling_source(source("llama_gqa").family)
    assert f'"DarwinLM {darwinlm.__version__}"' in code
    (tmp_path / "shipped.py").write_text(code)
    told = run("import transformers; transformers.__version__ = '5.13.2'\n"
               "try: import shipped\nexcept ImportError as fault: print(fault)", cwd=tmp_path)  # fmt: skip
    assert "needs transformers >= 5.14, but 5.13.2 is installed" in told
