"""A family of models: nested, each within its target, made by one command that can be killed, with one database."""

from __future__ import annotations

import itertools
import json

import pytest

import darwinlm
import pico
from darwinlm.config import RunConfig, TargetConfig
from darwinlm.database.store import Database
from darwinlm.errors import RequestError
from darwinlm.models.source import ModelSource
from darwinlm.run.family import family_targets

SHARES = {"80%": 0.8, "65%": 0.65, "50%": 0.5}
WITHOUT_TARGET = {group: values for group, values in pico.RUN.items() if group != "target"}


@pytest.fixture(scope="module")
def family(checkpoint, text, tmp_path_factory):
    """A run with three members, and its folder."""
    output = tmp_path_factory.mktemp("runs") / "family"
    common = {"data": str(text), "output": str(output), **WITHOUT_TARGET}
    return darwinlm.prune_family(str(checkpoint("llama_gqa")), targets="50%,80%,65%", **common).members, output


def test_members_are_nested_and_within_their_targets(family, checkpoint) -> None:
    members, output = family
    dense = ModelSource(str(checkpoint("llama_gqa"))).shape.parameters
    assert [member.name for member in members] == list(SHARES)
    database = Database.open(output / "database")
    for member in members:
        assert ModelSource(str(member.folder / "model")).shape.parameters <= SHARES[member.name] * dense
    for larger, smaller in itertools.pairwise(members):
        assert larger.levels != smaller.levels
        for name, level in smaller.levels.items():
            assert level >= larger.levels[name]
            kept = [set(database.kept(name, l.levels[name]).tolist()) for l in (smaller, larger)]
            assert kept[0] <= kept[1]


def test_a_family_leaves_numbers_and_a_picture(family) -> None:
    members, output = family
    saved = json.loads((output / "family/family.json").read_text())
    assert [row["target"] for row in saved["members"]] == [member.name for member in members]
    assert saved["members"][1]["pruned"] == members[1].summary["pruned"]
    assert (output / "family/family.png").read_bytes().startswith(b"\x89PNG")
    for member in members:
        limit = member.summary["achieved"]["limits"]["parameters"]
        assert limit["got"] == member.summary["pruned"]["parameters"] <= limit["asked"]
        assert member.summary["uniform"]["parameters"] <= limit["asked"]


def test_the_same_command_does_nothing_again_and_another_family_is_refused(family, checkpoint, text, monkeypatch):
    members, output = family
    common = {"data": str(text), "output": str(output), **WITHOUT_TARGET}
    with pytest.raises(RequestError, match="nested_in"):
        darwinlm.prune_family(str(checkpoint("llama_gqa")), targets=["50%", "80%"], **common)
    monkeypatch.setattr("darwinlm.run.stages.search", lambda *arguments: pytest.fail("searched again"))
    again = darwinlm.prune_family(str(checkpoint("llama_gqa")), targets=["80%", "65%", "50%"], **common).members
    assert again == members


def test_the_first_member_is_a_run_of_its_own(family, checkpoint, text, tmp_path) -> None:
    members, _ = family
    alone = {"data": str(text), "output": str(tmp_path / "alone"), **pico.RUN, "target": {"parameters": "80%"}}
    darwinlm.prune(str(checkpoint("llama_gqa")), **alone)
    assert json.loads((tmp_path / "alone/genome.json").read_text())["levels"] == members[0].levels


def test_levels_make_a_family_too(checkpoint, text, tmp_path) -> None:
    common = {"data": str(text), "output": str(tmp_path / "run"), **WITHOUT_TARGET}
    common["search"] = {**pico.RUN["search"], "start": "uniform", "generations": 2}
    one, two = darwinlm.prune_family(str(checkpoint("llama_gqa")), targets=[1, 3], **common).members
    steps = {"attn": {1: 2 * 3 / 4, 3: 3 * 2 * 3 / 4}, "mlp": {1: 3, 3: 9}}
    for member, level in ((one, 1), (two, 3)):
        for kind, totals in steps.items():
            found = sum(value for name, value in member.levels.items() if name.endswith(kind))
            assert found >= round(totals[level])
    assert all(two.levels[name] >= level for name, level in one.levels.items())


def test_an_unreachable_member_is_refused_before_the_work(checkpoint, text, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "darwinlm.run.family.database_stage", lambda *arguments, **options: pytest.fail("long work began")
    )
    common = {"data": str(text), "output": str(tmp_path / "run"), **WITHOUT_TARGET}
    with pytest.raises(RequestError, match=r"target\.parameters 1K cannot be met"):
        darwinlm.prune_family(str(checkpoint("llama_gqa")), targets="20K,1K", **common)


@pytest.mark.parametrize(
    ("typed", "order", "setting"),
    [
        ("3B, 5B,4B", ["5B", "4B", "3B"], "parameters"),
        ("40%,60%", ["60%", "40%"], "parameters"),
        ("2x,1.5x", ["1.5x", "2x"], "speedup"),
        ("6GB,8000MB", ["8000MB", "6GB"], "memory"),
        ("4,6.5", ["4", "6.5"], "level"),
    ],
)
def test_targets_of_a_family_are_read_and_ordered(typed, order, setting) -> None:
    config = RunConfig(target=TargetConfig(context=7, latency_table="t"))
    found = family_targets(config, typed)
    assert list(found) == order
    for name, target in found.items():
        assert getattr(target, setting) == (float(name) if setting == "level" else name)
        assert target.context == 7
        assert (target.level is None) == (setting != "level")


@pytest.mark.parametrize("typed", ["3B", "3B,3B", "3B,60%", "3B,2x", "lots,3B", "", "3B,3000M"])
def test_families_that_are_none_are_refused(typed) -> None:
    with pytest.raises(RequestError, match="--targets"):
        family_targets(RunConfig(), typed)
