"""The whole way on a pico model: what a run directory holds, that kill -9 changes nothing, that runs are not mixed up."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoModelForCausalLM

import darwinlm
import pico
from darwinlm.database.store import Database
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.models.source import ModelSource
from darwinlm.run import stages
from darwinlm.runtime.files import read_tensors, write_tensors
from killing import kill_within


@pytest.fixture(scope="module")
def finished(checkpoint, text, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    darwinlm.prune(str(checkpoint("llama_gqa")), data=str(text), output=str(output), **pico.RUN)
    return output


def answer(run: Path) -> dict[str, bytes]:
    """The genome and all weights of a run, byte for byte."""
    paths = [
        run / "genome.json",
        *(run / "database").glob("*.safetensors"),
        *(run / "refit").glob("*"),
        *(run / "model").glob("*"),
    ]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(paths)}


def test_a_run_directory_holds_what_the_contract_names(finished):
    for name in ("config.yaml", "blocks.safetensors", "database/manifest.json", "search/state.json", "log.txt"):
        assert (finished / name).is_file(), name
    assert len((finished / "search/history.jsonl").read_text().splitlines()) == pico.RUN["search"]["generations"]
    genome = json.loads((finished / "genome.json").read_text())
    assert genome["totals"]["attention"] == sum(v for k, v in genome["levels"].items() if k.endswith("attn"))
    assert ModelSource(str(finished / "model")).shape.parameters == genome["totals"]["parameters"]
    assert yaml.safe_load((finished / "config.yaml").read_text())["search"]["offspring"] == 4


def test_the_summary_says_what_stock_transformers_measure(finished, checkpoint):
    summary = json.loads((finished / "summary.json").read_text())
    tokens = read_tensors(finished / "blocks.safetensors")[0]["held_out"].long()
    dense = AutoModelForCausalLM.from_pretrained(checkpoint("llama_gqa"), dtype=torch.float64)
    pruned = AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float64, trust_remote_code=True)
    with torch.no_grad():
        p, q = (log_softmax(model(tokens).logits, -1) for model in (dense, pruned))
    for key, log_probabilities, model in (("dense", p, dense), ("pruned", q, pruned)):
        losses = cross_entropy(log_probabilities[:, :-1].mT, tokens[:, 1:], reduction="none").mean(1)
        loss, error = losses.mean().item(), losses.std().item() / len(losses) ** 0.5
        assert summary[key]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert summary[key]["perplexity_error"] == pytest.approx(math.exp(loss) * error, rel=1e-3)
        assert summary[key]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    kls = kl_div(q, p, log_target=True, reduction="none").sum(-1).mean(1)
    assert summary["pruned"]["kl"] == pytest.approx(kls.mean().item(), rel=1e-3)
    assert summary["pruned"]["kl_error"] == pytest.approx(kls.std().item() / len(kls) ** 0.5, rel=1e-3)
    assert summary["dense"]["kl"] == 0


KILLERS = {
    "database": ("darwinlm.database.store", "write_tensors", 3),
    "manifest": ("darwinlm.database.store", "write_json", 2),
    "history": ("darwinlm.search.record", "write_json", 3),
    "refit": ("darwinlm.refit.store", "write_tensors", 2),
    "trial": ("darwinlm.search.selection", "kls_to_teacher", 11),
    "export": ("darwinlm.export.huggingface", "copy_words", 1),
    "summary": ("darwinlm.run.results", "peak_memory_bytes", 1),
}


@pytest.mark.parametrize("killer", KILLERS)
def test_kill_9_and_the_same_command_give_the_same_bytes(killer, finished, checkpoint, text, tmp_path):
    settings, output = tmp_path / "settings.yaml", tmp_path / "killed"
    settings.write_text(yaml.safe_dump(pico.RUN))
    command = [str(checkpoint("llama_gqa")), "--data", str(text), "--config", str(settings), "--output", str(output)]
    module, name, call = KILLERS[killer]
    kill_within(module, name, call, ["prune", *command])
    darwinlm.prune(str(checkpoint("llama_gqa")), data=str(text), output=str(output), **pico.RUN)
    assert answer(output) == answer(finished)


def test_a_search_goes_on_when_generations_are_raised(finished, checkpoint, text, tmp_path):
    """Two and then two more generations are the same as four at once."""
    output = tmp_path / "staged"
    common = {"data": str(text), "output": str(output)}
    fewer = {**pico.RUN, "search": {**pico.RUN["search"], "generations": 2}}
    darwinlm.prune(str(checkpoint("llama_gqa")), **common, **fewer)
    darwinlm.prune(str(checkpoint("llama_gqa")), **common, **pico.RUN)
    assert answer(output) == answer(finished)


def test_a_run_of_another_model_is_refused(finished, checkpoint, text):
    with pytest.raises(RequestError, match=r"made from something else .*model"):
        darwinlm.prune(str(checkpoint("llama_tied")), data=str(text), output=str(finished), **pico.RUN)
    assert (finished / "summary.json").exists()


def test_other_settings_are_refused_by_name(finished):
    with pytest.raises(RequestError, match=r"target.level: there 2.0, asked 3.0.*--restart"):
        darwinlm.search_genome(str(finished), target={"level": 3})
    with pytest.raises(RequestError, match=r"database.levels: there 4, asked 5.*another --output"):
        darwinlm.search_genome(str(finished), database={"levels": 5})


BLOCKS = pico.RUN["blocks"]


def again(output: Path, **blocks: int) -> dict:
    """The same run with other token blocks; stages that are done must not be done again."""
    values = yaml.safe_load((output / "config.yaml").read_text())
    asked = {**pico.RUN, "blocks": {**BLOCKS, **blocks}}
    return darwinlm.prune(values["model"], data=values["data"], output=str(output), **asked).summary


def test_other_held_out_blocks_are_scored_on_the_same_model(finished, tmp_path, monkeypatch):
    output = tmp_path / "other"
    subprocess.run(["cp", "-r", finished, output], check=True)
    before = answer(output)
    for name in ("search", "export_checkpoint"):
        monkeypatch.delattr(f"darwinlm.run.stages.{name}")
    summary = again(output, held_out=12)
    tensors, _ = read_tensors(output / "blocks.safetensors")
    old, _ = read_tensors(finished / "blocks.safetensors")
    assert tensors["held_out"].shape == (12, 32)
    assert all(torch.equal(tensors[name], old[name]) for name in ("hessian", "train", "select"))
    assert answer(output) == before
    assert summary["pruned"]["kl"] != json.loads((finished / "summary.json").read_text())["pruned"]["kl"]


@pytest.mark.parametrize("split", ["train", "select"])
def test_other_search_blocks_keep_the_database(split, finished, tmp_path):
    output = tmp_path / "other"
    subprocess.run(["cp", "-r", finished, output], check=True)
    with pytest.raises(RequestError, match=rf"holds a search .*blocks\.{split}: there 8, asked 12.*--restart"):
        again(output, **{split: 12})
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (output / "database").iterdir()}
    darwinlm.search_genome(str(output), restart=True, blocks={split: 12})
    assert before == {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (output / "database").iterdir()
    }
    with pytest.raises(RequestError, match=r"holds a run .*blocks\.hessian: there 24, asked 30"):
        again(output, hessian=30)


def test_blocks_are_not_drawn_beside_others_from_a_text_that_changed(checkpoint, text, tmp_path):
    output, other = tmp_path / "other", tmp_path / "text.txt"
    other.write_text(text.read_text())
    asked = {"data": str(other), "output": str(output), **pico.RUN}
    darwinlm.build_database(str(checkpoint("llama_gqa")), **asked)
    other.write_text("something else " + text.read_text())
    darwinlm.search_genome(str(output))
    with pytest.raises(RequestError, match=r"text\.txt' is not what '.*other' was begun with"):
        darwinlm.search_genome(str(output), restart=True, blocks={"select": 12})


def test_a_run_of_an_earlier_edition_is_refused(finished, tmp_path):
    output = tmp_path / "old"
    subprocess.run(["cp", "-r", finished, output], check=True)
    tensors, _ = read_tensors(output / "blocks.safetensors")
    write_tensors(output / "blocks.safetensors", tensors, {"identity": "{}"})
    with pytest.raises(RequestError, match="an earlier edition"):
        again(output)


@pytest.mark.parametrize("content", ["", '{"kl"', "[1]"])
def test_damaged_records_are_made_again_or_named_with_a_remedy(content, finished, tmp_path):
    output = tmp_path / "damaged"
    subprocess.run(["cp", "-r", finished, output], check=True)
    before = json.loads((output / "summary.json").read_text())
    for name in ("summary.json", "timings.json"):
        (output / name).write_text(content)
    after = darwinlm.prune(output=str(output)).summary
    assert [after[name] for name in ("dense", "uniform", "pruned")] == [
        before[name] for name in ("dense", "uniform", "pruned")
    ]
    (output / "search/state.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"state\.json' is damaged\. Run the search again with --restart"):
        darwinlm.prune(output=str(output))


def test_a_refused_request_leaves_the_settings_alone(finished):
    before = (finished / "config.yaml").read_bytes()
    with pytest.raises(RequestError, match=r"target\.level"):
        darwinlm.export_checkpoint(str(finished), target={"level": 3})
    assert (finished / "config.yaml").read_bytes() == before


@torch.no_grad()
def naive_kl(run: Path, checkpoint: Path, levels: dict[str, int], split: str) -> float:
    """Of a genome on a split of a run, by all logits of the masked stock model in float64."""
    database = Database.open(run / "database")
    genome = [levels[name] for name in database.modules]
    dense, masked = (pico.zero_masked(checkpoint, database, g).double() for g in ([0] * len(genome), genome))
    tokens = read_tensors(run / "blocks.safetensors")[0][split].long()
    p, q = (log_softmax(model(tokens, use_cache=False).logits, -1) for model in (dense, masked))
    return kl_div(q, p, log_target=True, reduction="none").sum(-1).mean().item()


def test_both_starts_run_and_the_linearized_one_is_better(finished, checkpoint, tmp_path, monkeypatch):
    starts, totals, search = {}, set(), stages.search

    def noted(start, space, *rest):
        first = start()
        starts[asked] = space.named(first)
        return search(lambda: first, space, *rest)

    monkeypatch.setattr(stages, "search", noted)
    for asked in ("uniform", "linearized"):
        output = tmp_path / asked
        subprocess.run(["cp", "-r", finished, output], check=True)
        darwinlm.search_genome(str(output), restart=True, search={"start": asked, "generations": 1})
        totals.add(tuple(json.loads((output / "genome.json").read_text())["totals"][k] for k in ("attention", "mlp")))
    assert len(totals) == 1
    assert {abs(level - 2) for name, level in starts["uniform"].items() if name.endswith("mlp")} == {0}
    kl = {name: naive_kl(finished, checkpoint("llama_gqa"), start, "select") for name, start in starts.items()}
    assert kl["linearized"] < kl["uniform"]


def test_what_ends_or_watches_a_search_may_change(finished, checkpoint, tmp_path):
    output = tmp_path / "longer"
    subprocess.run(["cp", "-r", finished, output], check=True)
    before = (output / "search/history.jsonl").read_text()
    levels = darwinlm.search_genome(str(output), search={"generations": 6, "patience": 40, "check_every": 3}).levels
    after = (output / "search/history.jsonl").read_text()
    lines = [json.loads(line) for line in after.splitlines()]
    assert after.startswith(before)
    assert ["held_out" in line for line in lines] == [False] * 5 + [True]  # the third was done before
    kl = naive_kl(output, checkpoint("llama_gqa"), levels, "held_out")
    assert lines[5]["held_out"]["kl"] == pytest.approx(kl, rel=1e-3)


def test_a_search_that_goes_on_has_no_result_before_its_end(finished, tmp_path, monkeypatch):
    """And the card says the generations that there were, where patience ended it."""
    shutil.copytree(finished, output := tmp_path / "longer")
    with monkeypatch.context() as patch:
        patch.setattr("darwinlm.run.stages._search", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            darwinlm.search_genome(str(output), search={"generations": 50})
    with pytest.raises(RequestError, match="holds no genome yet"):
        darwinlm.export_checkpoint(output=str(output))
    darwinlm.search_genome(str(output), search={"generations": 50, "patience": 2})
    darwinlm.export_checkpoint(output=str(output))
    done = json.loads((output / "search/state.json").read_text())["generation"]
    assert done < 50
    assert f"{done} generations of" in (output / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("setting", "value", "there"),
    [("start", "uniform", "linearized"), ("learning_rate", 0.5, "0.001"), ("start_rounds", 2, "8")],
)
def test_another_search_is_refused_by_name(finished, setting, value, there):
    with pytest.raises(RequestError, match=rf"search\.{setting}: there {there}, asked {value}.*--restart"):
        darwinlm.search_genome(str(finished), search={setting: value})


def test_restart_makes_room_for_another_search(finished, tmp_path):
    output = tmp_path / "again"
    subprocess.run(["cp", "-r", finished, output], check=True)
    levels = darwinlm.search_genome(str(output), restart=True, target={"level": 1}).levels
    assert sum(levels[name] for name in levels if name.endswith("mlp")) == 3
    assert not (output / "model").exists()


def test_a_finished_run_does_nothing_again(finished, checkpoint, text, monkeypatch):
    def again(*arguments, **options):
        raise AssertionError("done twice")

    for name in ("search", "export_checkpoint", "HeldOut"):
        monkeypatch.setattr(f"darwinlm.run.stages.{name}", again)
    summary = darwinlm.prune(checkpoint("llama_gqa"), data=text, output=finished, **pico.RUN).summary
    assert summary == json.loads((finished / "summary.json").read_text())


def test_other_forms_lie_beside_the_checkpoint_and_go_with_it(finished, tmp_path):
    pytest.importorskip("gguf")
    output = tmp_path / "forms"
    subprocess.run(["cp", "-r", finished, output], check=True)
    assert darwinlm.export_checkpoint(str(output), portable=True, format="gguf").folder == output / "model"
    assert [path.name for path in output.glob("model-*")] == [
        "model-gguf"
    ]  # nothing is absent: it is the portable form, too
    assert {path.name for path in output.glob("model-gguf/[!.]*")} == {"forms-30K-F32.gguf", "Modelfile"}
    darwinlm.search_genome(str(output), restart=True, target={"level": 1})
    assert not list(output.glob("model*"))


def test_a_form_that_cannot_be_had_is_refused_before_the_checkpoint_is_written(finished, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    output = tmp_path / "refused"
    subprocess.run(["cp", "-r", finished, output], check=True)
    subprocess.run(["rm", "-r", output / "model"], check=True)
    monkeypatch.setattr("darwinlm.export.gguf.file.llama_cpp_faults", lambda source, free: ["has a flaw"])
    with pytest.raises(RequestError, match="it has a flaw"):
        darwinlm.export_checkpoint(str(output), format="gguf")
    assert not (output / "model").exists()


def test_a_damaged_database_is_named_and_rebuilt_only_when_asked(finished, checkpoint, text, tmp_path):
    output = tmp_path / "damaged"
    subprocess.run(["cp", "-r", finished, output], check=True)
    before = answer(output)
    victim = next((output / "database").glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x7f")
    asked = {"data": str(text), "output": str(output), **pico.RUN}
    with pytest.raises(DamagedFileError, match=f"{victim.name}.*--rebuild"):
        darwinlm.prune(str(checkpoint("llama_gqa")), **asked)
    darwinlm.prune(str(checkpoint("llama_gqa")), rebuild=True, **asked)
    assert answer(output) == before


def test_a_folder_of_other_things_is_left_alone(checkpoint, text, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RequestError, match="no run of DarwinLM"):
        darwinlm.prune(str(checkpoint("llama_gqa")), data=str(text), output=str(tmp_path), **pico.RUN)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_full_disk_is_found_before_the_work(checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(RequestError, match=r"only 1\.00 KB are free"):
        darwinlm.prune(str(checkpoint("llama_gqa")), data=str(text), output=str(tmp_path / "run"), **pico.RUN)


def test_low_precision_weights_need_low_precision_arithmetic(checkpoint, text, tmp_path):
    with pytest.raises(RequestError, match=r"search\.weights is bfloat16, but the arithmetic is float32"):
        darwinlm.prune(
            str(checkpoint("llama_gqa")),
            data=str(text),
            output=str(tmp_path / "run"),
            **{**pico.RUN, "search": {**pico.RUN["search"], "weights": "bfloat16"}},
        )
