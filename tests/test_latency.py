"""Latency tables: exact where times add up, refused where they were measured elsewhere, and whole on disk."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import darwinlm
import pico
from darwinlm.assemble import Assembler
from darwinlm.cli import main
from darwinlm.config import TargetConfig
from darwinlm.errors import DamagedFileError, RequestError
from darwinlm.measure import table as measuring
from darwinlm.measure.predicted import predictions
from darwinlm.measure.probes import Probes
from darwinlm.measure.table import rising, solved
from darwinlm.models.shape import LayerWidths
from darwinlm.models.source import ModelSource
from darwinlm.target.budget import uniform
from darwinlm.target.latency import LatencyTable, StageTimes, Work, model_key, times_for
from darwinlm.target.shapes import Shapes, possible_shapes
from darwinlm.target.target import Target

FAST = {"context_lengths": [8], "decode_tokens": 2, "repeats": 1, "warmups": 0}


@given(st.integers(0, 2**32))
def test_where_times_add_up_the_parts_are_found(seed: int) -> None:
    rng = random.Random(seed)
    shapes = Shapes([(h, h // 2) for h in (8, 6, 4, 2)], [64, 48, 32, 16])
    attention = dict(zip([(0, 0), *reversed(shapes.attention)], [0.0, *sorted(rng.uniform(1, 9) for _ in range(4))]))
    mlp = dict(zip([0, *reversed(shapes.mlp)], [0.0, *sorted(rng.uniform(1, 9) for _ in range(4))]))
    base, layers, with_heads = rng.uniform(0, 20), rng.randint(3, 5), rng.randint(1, 3)
    (heads, width) = shapes.middle
    pairs = {(a, width) for a in attention} | {(heads, m) for m in mlp}
    seconds = {(a, m): base + with_heads * attention[a] + layers * mlp[m] for a, m in pairs}
    parts = solved(seconds, shapes, layers, with_heads)
    assert parts.base == pytest.approx(base)
    assert parts.attention == pytest.approx(attention)
    assert parts.mlp == pytest.approx(mlp)


@given(st.dictionaries(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.floats(0, 9), min_size=1))
def test_wider_modules_never_take_less(seconds) -> None:
    """Noise is evened out where it contradicts that, and nowhere else."""
    found = rising(seconds)
    for one in seconds:
        for other in seconds:
            if one[0] <= other[0] and one[1] <= other[1]:
                assert found[one] <= found[other]
    below = {w: max(s for v, s in seconds.items() if v[0] <= w[0] and v[1] <= w[1]) for w in seconds}
    above = {w: min(s for v, s in seconds.items() if v[0] >= w[0] and v[1] >= w[1]) for w in seconds}
    for width, took in seconds.items():
        assert above[width] <= found[width] <= below[width]
        if above[width] == below[width]:
            assert found[width] == took
    assert rising(found) == pytest.approx(found)


@pytest.mark.parametrize(("family", "unit"), pico.FAMILIES_AND_UNITS)
def test_every_width_that_occurs_is_measured(family, unit, source, database) -> None:
    assembler = Assembler(source(family), database(family, unit))
    shapes = possible_shapes(source(family).shape, assembler.space.ladders)
    for ladder in assembler.space.ladders:
        for level in range(ladder.top):
            widths = assembler.module_widths(ladder, level)
            if ladder.kind == "mlp":
                assert widths.intermediate in shapes.mlp
            else:
                assert (widths.heads, widths.kv_heads) in shapes.attention


@pytest.mark.parametrize("family", ["llama_tied", "mistral", "qwen2", "qwen3"])
def test_probes_have_the_shapes_of_real_models_and_share_memory(family, source) -> None:
    probes = Probes(source(family), pico.CPU, torch.float32, 0)
    dense = probes.model(source(family).shape.layers)
    widths = [LayerWidths(0, 0, 8), LayerWidths(4, 2, 0), LayerWidths(4, 2, 16)]
    probe = probes.model(widths)
    expected = source(family).shape.with_layers(widths).parameters
    assert sum(parameter.numel() for parameter in probe.parameters()) == expected
    with torch.no_grad():
        assert probe(pico.random_tokens(1, 4)).logits.isfinite().all()
    ours, theirs = (m.model.layers[2].mlp.gate_proj.weight for m in (probe, dense))
    assert ours.data_ptr() == theirs.data_ptr()
    assert ours.is_contiguous()


@pytest.fixture(scope="module")
def tables(checkpoint, tmp_path_factory):
    """A table of the pico model, measured by the command."""
    folder = tmp_path_factory.mktemp("table")
    flags = [word for name, value in FAST.items() for word in (f"--bench.{name}", str(value))]
    levels = ["--database.levels", "4", "--database.multiple_of", "4", "--database.attention_unit", "kv_group"]
    main(["bench", str(checkpoint("llama_gqa")), "--table", "--output", str(folder), *flags, *levels])
    return folder / "latency.json"


def test_a_table_is_saved_with_where_it_was_measured(tables, source) -> None:
    table = LatencyTable.load(tables)
    assert table.machine.keys() == {"device", "engine", "dtype", "threads", "torch", "transformers"}
    assert table.model == model_key(source("llama_gqa").shape)
    assert [times.work for times in table.stages] == [Work("prefill", 1, 8, 2), Work("decode", 1, 8, 2)]
    for times in table.stages:
        assert times.dense > 0
        assert len(times.checks) == measuring.CHECKS
        assert set(times.attention) == {(8, 2), (4, 1)}
        assert set(times.mlp) == {48, 36, 24, 12}
    table.save(tables.parent / "again.json")
    assert json.loads((tables.parent / "again.json").read_text()) == json.loads(tables.read_text())


def asked(path, **changes) -> TargetConfig:
    return TargetConfig(**{"level": None, "speedup": "1.1x", "context": 8, "latency_table": str(path), **changes})


def test_tables_of_something_else_are_refused(tables, source, tmp_path) -> None:
    shape = source("llama_gqa").shape
    assert times_for(asked(tables), shape, pico.CPU, torch.float32).work.stage == "prefill"
    assert times_for(asked(tables, workload="decode"), shape, pico.CPU, torch.float32).work.stage == "decode"
    with pytest.raises(RequestError, match="measured with dtype 'float32', and the run has 'bfloat16'"):
        times_for(asked(tables), shape, pico.CPU, torch.bfloat16)
    with pytest.raises(RequestError, match=r"has no workload prefill 2 x 8 tokens.*--bench\.batch_sizes \[2\]"):
        times_for(asked(tables, batch=2), shape, pico.CPU, torch.float32)
    with pytest.raises(RequestError, match="measured with model"):
        times_for(asked(tables), source("qwen3").shape, pico.CPU, torch.float32)
    with pytest.raises(RequestError, match="There is no latency table"):
        times_for(asked(tmp_path / "none.json"), shape, pico.CPU, torch.float32)
    saved = json.loads(tables.read_text())
    saved["machine"]["device"] = "abacus"
    (tmp_path / "other.json").write_text(json.dumps(saved))
    with pytest.raises(RequestError, match=r"measured with device 'abacus'.*bench MODEL --table"):
        times_for(asked(tmp_path / "other.json"), shape, pico.CPU, torch.float32)
    (tmp_path / "broken.json").write_text(json.dumps({**saved, "stages": [{}]}))
    with pytest.raises(DamagedFileError, match="no latency table of this version"):
        LatencyTable.load(tmp_path / "broken.json")


def test_a_table_of_llama_cpp_is_told_from_others(checkpoint, source, tmp_path, capsys) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    model, asks = str(checkpoint("llama_tied")), {"levels": 4, "multiple_of": 4}
    bench = {**FAST, "engine": "llama.cpp", "gguf": "q8_0", "threads": 1}
    darwinlm.measure_latency(model, output=tmp_path, bench=bench, database=asks)
    table = LatencyTable.load(tmp_path / "latency.json")
    assert table.machine.keys() == {"device", "engine", "dtype", "threads", "xllamacpp"}
    assert (table.machine["engine"], table.machine["dtype"]) == ("llama.cpp", "q8_0")
    assert all(set(times.mlp) == {48, 36, 24, 12} and times.dense > 0 for times in table.stages)
    asked_of_it = asked(tmp_path / "latency.json", workload="decode")
    times = times_for(asked_of_it, source("llama_tied").shape, pico.CPU, torch.bfloat16)  # its dtype is its own
    assert times is not None
    assert times.engine == "llama.cpp"
    with pytest.raises(RequestError, match=r"measured in llama\.cpp, and these models run in transformers"):
        darwinlm.bench(model, latency_table=tmp_path / "latency.json", output=tmp_path, bench=FAST)
    with pytest.raises(RequestError, match="measured offline"):
        darwinlm.measure_latency(model, output=tmp_path, bench={**FAST, "engine": "vllm-server"}, database=asks)


def made_up(source, rungs, base: float = 0.5) -> StageTimes:
    """Times that add up by hand: a second a head, a hundredth a column."""
    shapes = possible_shapes(source.shape, rungs)
    attention, mlp = {s: float(s[0]) for s in shapes.attention}, {m: m / 100 for m in shapes.mlp}
    times = StageTimes(Work("prefill", 1, 8, 2), 0.0, base, attention, mlp)
    return replace(times, dense=times.predicted(source.shape))


@pytest.mark.parametrize("speedup", ["1.2x", "2x", "5x"])
def test_a_speedup_is_met_as_the_table_predicts(speedup, source, database) -> None:
    assembler = Assembler(source("llama_gqa"), database("llama_gqa", "kv_group"))
    times = made_up(source("llama_gqa"), assembler.space.ladders)
    target = TargetConfig(None, speedup=speedup, latency_table="made up")
    wanted = Target(target, None, source("llama_gqa").shape, assembler.space, 4, times)
    budget = wanted.budget(assembler.module_widths)
    genome = uniform(budget, random.Random(0))
    assert budget.is_full(genome)
    predicted = times.predicted(assembler.shape(genome))
    assert times.dense / predicted >= float(speedup[:-1])
    row = wanted.achieved(genome, assembler.module_widths)["latency"]
    assert row["got"] == pytest.approx(predicted, abs=1e-9)
    assert row["predicted_speedup"] == pytest.approx(times.dense / predicted)
    assert row["smallest"] == 0.5
    assert row["engine"] == "transformers"


def test_a_speedup_out_of_reach_is_refused_with_the_fastest(source, database) -> None:
    assembler = Assembler(source("llama_gqa"), database("llama_gqa", "kv_group"))
    times = made_up(source("llama_gqa"), assembler.space.ladders)
    target = TargetConfig(None, speedup="100x", latency_table="made up")
    wanted = Target(target, None, source("llama_gqa").shape, assembler.space, 4, times)
    with pytest.raises(
        RequestError, match=r"target\.speedup 100x cannot be met: .* every module gone 500\.00 ms are left"
    ):
        wanted.require_reachable(assembler.module_widths)


def test_a_model_that_is_fast_enough_is_refused_in_milliseconds(source, database) -> None:
    assembler = Assembler(source("llama_gqa"), database("llama_gqa", "kv_group"))
    times = replace(made_up(source("llama_gqa"), assembler.space.ladders), dense=99.0)
    wanted = Target(TargetConfig(None, speedup="1.1x"), None, source("llama_gqa").shape, assembler.space, 4, times)
    with pytest.raises(RequestError, match=r"as it is: it has 25,940\.00 ms, and up to 90,000\.00 ms are asked"):
        wanted.require_reachable(assembler.module_widths)


def test_predictions_stand_beside_what_is_measured(tables, checkpoint, tmp_path, capsys) -> None:
    model = str(checkpoint("llama_gqa"))
    flags = [word for name, value in FAST.items() for word in (f"--bench.{name}", str(value))]
    main(["bench", model, "--against", model, "--latency-table", str(tables), "--output", str(tmp_path), *flags])
    printed = capsys.readouterr().out
    assert "Predicted by the table" in printed
    assert printed.count("decode") >= 2
    table, result = LatencyTable.load(tables), darwinlm.bench(model, against=model, bench=FAST).result
    shape = ModelSource(model).shape
    for row in predictions(result, table):
        times = next(t for t in table.stages if t.work.stage == row.times.work.stage)
        by_hand = times.base + 3 * (times.attention[8, 2] + times.mlp[48])
        assert row.predicted == pytest.approx(by_hand) == times.predicted(shape)
        assert row.error == pytest.approx(by_hand / row.measured - 1)
    with pytest.raises(RequestError, match="none of the workloads that were measured, but 1 x 8 tokens"):
        predictions(darwinlm.bench(model, against=model, bench={**FAST, "context_lengths": [9]}).result, table)


def test_the_whole_way_to_a_speedup(tables, checkpoint, tmp_path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{number} and {number * number}; " for number in range(1000)))
    target = {"speedup": 1.2, "context": 8, "latency_table": str(tables)}
    common = {"data": str(tmp_path / "text.txt"), "output": str(tmp_path / "run"), **pico.RUN}
    search = {**pico.RUN["search"], "start": "uniform", "generations": 1}
    saved = json.loads(tables.read_text())
    for stage in saved["stages"]:  # the clock of a busy machine must not decide
        stage |= {"base": 0.1, "attention": [[8, 2, 2.0], [4, 1, 1.0]], "mlp": [[m, m / 48] for m in (48, 36, 24, 12)]}
        stage["dense"] = 9.1
    tables.write_text(json.dumps(saved))
    summary = darwinlm.prune(str(checkpoint("llama_gqa")), **{**common, "search": search, "target": target}).summary
    assert summary["achieved"]["limits"]["latency"]["predicted_speedup"] >= 1.2
