"""Settings: what is resolved, what is refused, and that all faults come at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from darwinlm.config import (
    PRESETS,
    RunConfig,
    Stage,
    TargetConfig,
    merge,
    preset_values,
    read_yaml,
    resolve,
    to_dict,
    violations,
)
from darwinlm.errors import RequestError

NAMED = {"model": "a/model", "data": "text", "output": "run"}
SOUND = {  # settings without a fault, which a test spoils one by one
    "blocks": {"sequence_length": 16, "train": 10, "select": 10},
    "search": {
        "generations": 4,
        "offspring": 8,
        "survivors": [4, 1],
        "train_tokens": [16, 160],
        "select_tokens": [16, 160],
    },
}


def refusals(*layers: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(RequestError) as caught:
        resolve(*layers)
    return caught.value.faults


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_resolve_without_faults(preset: str) -> None:
    config = resolve(preset_values(preset), NAMED)
    assert violations(config) == []
    assert (config.model, config.data, config.output) == ("a/model", "text", "run")


def test_the_defaults_have_no_faults() -> None:
    assert violations(resolve({})) == []
    assert resolve({}) == RunConfig(target=TargetConfig(parameters="60%"))


def test_the_paper_preset_is_the_paper() -> None:
    """arXiv 2502.07780, section 4 and Algorithm 1."""
    config = resolve(preset_values("paper"), NAMED)
    blocks, database, search = config.blocks, config.database, config.search
    assert (search.generations, search.offspring, search.learning_rate, search.switches) == (200, 16, 1e-5, 3)
    assert search.stages == (
        Stage(8, 10_000, 1024),
        Stage(4, 50_000, 2048),
        Stage(2, 100_000, 4096),
        Stage(1, 200_000, 8192),
    )
    assert (database.levels, database.multiple_of, database.rel_damp, config.target.level) == (10, 32, 1e-2, 5)
    assert (blocks.hessian, blocks.sequence_length, blocks.select) == (2048, 4096, 16)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(RequestError, match=r"'slow'.*demo, quick, paper"):
        preset_values("slow")


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [
        ({"sede": 3}, "sede"),
        ({"blocks": {"hesian": 3}}, "hesian"),
        ({"bloks": {}}, "bloks"),
        ({"seed": "many"}, "seed"),
        ({"blocks": {"hessian": 1.5}}, "blocks.hessian"),
        ({"blocks": {"hessian": None}}, "blocks.hessian"),
        ({"blocks": None}, "blocks"),
        ({"blocks": [3]}, "blocks"),
        ({"target": 5}, "target"),
        ({"database": {"attention_unit": "tail"}}, "database.attention_unit"),
        ({"search": {"survivors": 4}}, "search.survivors"),
        ({"dtype": "float16"}, "dtype"),
        ({"model": 7}, "model"),
    ],
)
def test_unknown_and_ill_typed_settings_are_named(spoilt: dict[str, Any], named: str) -> None:
    (fault,) = refusals(SOUND, spoilt)
    assert named in fault


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [
        *(({"blocks": {name: 0}}, [f"blocks.{name} is 0"]) for name in ("hessian", "held_out", "pool_tokens")),
        *(({"database": {name: 0}}, [f"database.{name} is 0"]) for name in ("multiple_of", "batch_sequences")),
        *(({"search": {name: 0}}, [f"search.{name} is 0"]) for name in ("batch_sequences", "switches")),
        *(({"search": {name: -1}}, [f"search.{name} is -1"]) for name in ("generations", "sequence_tokens")),
        (
            {"blocks": {"sequence_length": 1}, "search": {"train_tokens": [1, 2], "select_tokens": [2, 2]}},
            ["sequence_length is 1"],
        ),
        ({"database": {"levels": 1}, "target": {"level": 0.5}}, ["database.levels is 1"]),
        *(({"database": {"rel_damp": damp}}, ["rel_damp"]) for damp in (0.0, -1e-3, math.inf, math.nan)),
        *(({"target": {"level": level}}, ["target.level", "10"]) for level in (0, -1.0, 10, 12.5)),
        *(({"target": {"level": level}}, ["target.level", "finite"]) for level in (math.inf, math.nan)),
        *(({"search": {"learning_rate": rate}}, ["search.learning_rate"]) for rate in (-1e-5, math.inf, math.nan)),
        *(({"search": {"confidence": errors}}, ["search.confidence"]) for errors in (-1.0, math.inf, math.nan)),
        *(({"search": {"survivors": s}}, ["search.survivors", "decrease"]) for s in ([1, 4], [4, 2], [1, 1], [4, 0])),
        ({"search": {"survivors": [9, 1]}}, ["search.survivors", "search.offspring = 8"]),
        ({"search": {"survivors": [4, 2, 1]}}, ["search.survivors has 3", "search.train_tokens has 2"]),
        ({"search": {"survivors": [], "train_tokens": [], "select_tokens": []}}, ["search.survivors has 0"]),
        ({"search": {"train_tokens": [16, 161]}}, ["search.train_tokens", "[161]", "160", "blocks.train"]),
        ({"search": {"select_tokens": [0, 176]}}, ["search.select_tokens", "[0, 176]", "160", "blocks.select"]),
        ({"search": {"training": "refit"}}, ["search.train_tokens", "[16]", "2 blocks", "32"]),
        ({"search": {"train_tokens": [-1, 0]}}, ["search.train_tokens", "[-1]"]),
        *(({"sheared": {"tokens": count}}, [f"sheared.tokens is {count}"]) for count in (-1, 1)),
        *(({"sheared": {"learning_rate": rate}}, ["sheared.learning_rate"]) for rate in (-1e-5, math.inf, math.nan)),
        *(({"sheared": {"mask_learning_rate": rate}}, ["mask_learning_rate"]) for rate in (0.0, math.nan)),
        *(({"sheared": {"warm_up": part}}, ["sheared.warm_up"]) for part in (-0.1, 1.1, math.nan)),
    ],
)
def test_an_impossible_setting_is_one_fault_that_names_it(spoilt: dict[str, Any], named: list[str]) -> None:
    (fault,) = refusals(SOUND, spoilt)
    assert not [part for part in named if part not in fault]


def test_all_impossible_settings_are_found_at_once() -> None:
    found = refusals(
        SOUND,
        {"blocks": {"held_out": -2}, "database": {"levels": 1, "rel_damp": 0}, "target": {"level": 50}},
        {"search": {"offspring": 0, "survivors": [2, 4], "select_tokens": [16]}},
    )
    expected = [
        "held_out",
        "search.offspring",
        "database.levels",
        "rel_damp",
        "target.level",
        "one entry in each list",
        "must decrease",
    ]
    assert len(found) == len(expected)
    assert all(any(name in fault for fault in found) for name in expected)


@pytest.mark.parametrize(
    "edge", [{"target": {"level": 0.1}}, {"target": {"level": 9.9}}, {"search": {"train_tokens": [0, 160]}}]
)
def test_the_edges_of_what_is_possible_are_possible(edge: dict[str, Any]) -> None:
    assert violations(resolve(SOUND, edge)) == []


LEAVES = ("seed", "blocks.train", "blocks.select", "search.switches", "a.deep.one", "a.deep.two")
FLAT_LAYERS = st.lists(st.dictionaries(st.sampled_from(LEAVES), st.integers()), max_size=4)


def nested(flat: dict[str, int]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, leaf = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return tree


def flattened(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in tree.items():
        yield from flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


@given(FLAT_LAYERS)
def test_later_layers_win_leaf_by_leaf(layers: list[dict[str, int]]) -> None:
    trees = [nested(layer) for layer in layers]
    truth: dict[str, int] = {}
    for layer in layers:
        truth |= layer
    assert dict(flattened(merge(*trees))) == truth
    assert trees == [nested(layer) for layer in layers]  # and none of the layers was changed


def test_what_no_layer_names_keeps_its_default() -> None:
    config = resolve(SOUND, {"blocks": {"train": 20}}, {"blocks": {"train": 30}, "seed": 4})
    blocks = config.blocks
    assert (blocks.train, blocks.sequence_length, blocks.hessian, config.seed) == (
        30,
        16,
        RunConfig().blocks.hessian,
        4,
    )


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**40),
    level=st.floats(0.01, 9.99),
    rate=st.floats(0, 1),
    dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    table=st.none() | st.lists(st.integers(0, 9), min_size=1),
    data=st.text(st.characters(blacklist_categories=["Cs", "Cc"])),
)
def test_settings_survive_their_own_file(tmp_path_factory, seed, level, rate, dtype, table, data) -> None:
    changed = {
        "seed": seed,
        "target": {"level": level},
        "search": {"learning_rate": rate},
        "dtype": dtype,
        "data": data,
    }
    config = resolve(SOUND, changed, {"database": {"mlp_columns": table}})
    assert (config.seed, config.target.level, config.data, config.database.mlp_columns) == (seed, level, data, table)
    assert resolve(to_dict(config)) == config
    file = tmp_path_factory.mktemp("settings") / "config.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    assert resolve(read_yaml(file)) == config


def test_a_float_may_be_written_as_people_write_it(tmp_path: Path) -> None:
    """YAML 1.1 takes `1e-5` for a string."""
    file = tmp_path / "config.yaml"
    file.write_text("search: {learning_rate: 1e-5}\ntarget: {level: 5}\n")
    config = resolve(SOUND, read_yaml(file))
    assert (config.search.learning_rate, config.target.level) == (1e-5, 5.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "Cannot read"),
        (b"blocks: [1", "not valid YAML"),
        (b"a: b: c", "not valid YAML"),
        (b"- 1\n- 2\n", "must hold settings"),
        (b"", "must hold settings"),
        (b"seed: 1 # \xff\xfe", "not valid|UTF-8"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=reason) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)
