"""Two processes under torchrun give what one gives: the same selections, the same history line by line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import darwinlm
import pico
from darwinlm.database.store import Database
from darwinlm.runtime import ranks
from darwinlm.runtime.files import read_tensors

SETTINGS = {**pico.RUN, "search": {**pico.RUN["search"], "check_every": 3, "confidence": 0.5}}


def torchrun(
    *arguments: object, program: tuple[object, ...] = ("-m", "darwinlm"), world: int = 2
) -> subprocess.CompletedProcess[str]:
    """`darwinlm`, or another program, on ranks of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", f"--master-port={port}"]
    command += map(str, (*program, *arguments))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def one_rank(checkpoint, tmp_path_factory) -> tuple[Path, list[str]]:
    """A finished run of one process, and the command line that made it."""
    folder = tmp_path_factory.mktemp("one_rank")
    (folder / "text.txt").write_text("".join(f"{number} and {number * number}; " for number in range(1000)))
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    darwinlm.prune(str(checkpoint("llama_gqa")), data=str(folder / "text.txt"), output=str(folder / "run"), **SETTINGS)
    model = ["--model", str(checkpoint("llama_gqa"))]
    return folder / "run", [*model, "--data", str(folder / "text.txt"), "--config", str(folder / "settings.yaml")]


@pytest.mark.parametrize(("world", "hessian"), [(2, None), (3, 2)], ids=["two ranks", "more ranks than blocks"])
def test_ranks_build_the_same_database(one_rank, tmp_path, world: int, hessian: int | None):
    """Hessians are summed in another order, so weights agree to 1e-4 of their norm; what is selected is equal."""
    run, (_, model, *asked) = one_rank
    if hessian:
        asked += ["--blocks.hessian", str(hessian)]
        blocks = {**SETTINGS["blocks"], "hessian": hessian}
        run, data = tmp_path / "one", asked[asked.index("--data") + 1]
        darwinlm.build_database(model, data=data, output=str(run), **{**SETTINGS, "blocks": blocks})
    done = torchrun("database", model, *asked, "--output", tmp_path / "run", world=world)
    assert done.returncode == 0, done.stderr
    one, two = Database.open(run / "database"), Database.open(tmp_path / "run/database")
    assert two.damaged(thorough=True) == []
    assert list(one.modules) == list(two.modules)
    for ladder in one.ladders():
        for level in range(1, ladder.top):
            assert torch.equal(one.kept(ladder.name, level), two.kept(ladder.name, level))
            ours, theirs = (database.weight(ladder.name, level) for database in (one, two))
            assert torch.linalg.norm(ours - theirs) < 1e-4 * torch.linalg.norm(ours)


def test_two_ranks_search_line_by_line_alike(one_rank, tmp_path):
    """From a start that they linearized together, with looks at the held-out text by one of them."""
    run, asked = one_rank
    assert yaml.safe_load((run / "config.yaml").read_text())["search"]["start"] == "linearized"
    assert ["held_out" in line for line in history(run)] == [False, False, True, False]
    without_search(run, tmp_path / "run")
    done = torchrun("search", *asked, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/genome.json").read_bytes() == (run / "genome.json").read_bytes()
    assert history(tmp_path / "run") == history(run)


def test_two_ranks_refit_alike(one_rank, tmp_path):
    """Sums are added up in another order, so matrices agree to 1e-4 of their norm."""
    run, asked = one_rank
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/refit")
    done = torchrun("refit", *asked, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for path in (run / "refit").glob("*.safetensors"):
        ours, theirs = (read_tensors(folder / "refit" / path.name)[0] for folder in (run, tmp_path / "run"))
        assert all(torch.linalg.norm(ours[name] - theirs[name]) < 1e-4 * torch.linalg.norm(ours[name]) for name in ours)


def test_two_ranks_round_levels_alike(one_rank, tmp_path):
    """Second moments are added up in another order, so a number in a hundred may go to the other side of a step."""
    run, asked = one_rank
    for name in ("one", "two"):
        without_search(run, tmp_path / name)
    formats = {"target": {"memory": "60%", "formats": ["q8_0"]}, "search": {"generations": 0, "start_rounds": 1}}
    darwinlm.search_genome(str(tmp_path / "one"), **formats)
    flags = ["--target.memory", "60%", "--target.formats", "[q8_0]"]
    done = torchrun("search", *asked, *flags, "--search.generations", 0, "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "one/database/q8_0").iterdir())
    assert len(files) == 6
    for path in files:
        ours, theirs = (read_tensors(tmp_path / name / "database/q8_0" / path.name)[0] for name in ("one", "two"))
        assert all((ours[name] != theirs[name]).double().mean() < 0.01 for name in ours)


def without_search(run: Path, copy: Path) -> None:
    """A copy of a run with nothing that its search left."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "search")
    (copy / "genome.json").unlink()


def history(run: Path) -> list[dict]:
    """The lines without how long they took."""
    lines = [json.loads(line) for line in (run / "search/history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


FATAL = """
import os, signal, sys
from darwinlm.search import selection
scored, calls = selection.kls_to_teacher, 0
def fatal(*asked):
    global calls
    calls += 1
    if os.environ["RANK"] == sys.argv[1] and calls == 7:  # of 3 or 4 in a generation
        os.kill(os.getpid(), signal.SIGKILL)
    return scored(*asked)
selection.kls_to_teacher = fatal
from darwinlm.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("victim", "ranks_again"), [(0, 1), (1, 2)])
def test_a_killed_rank_ends_all_and_the_search_goes_on(one_rank, tmp_path, victim: int, ranks_again: int):
    """With as many ranks as before or with one, to the end that an undisturbed run has."""
    run, asked = one_rank
    output = tmp_path / "run"
    without_search(run, output)
    (tmp_path / "fatal.py").write_text(FATAL)
    died = torchrun(victim, "search", *asked, "--output", output, program=(tmp_path / "fatal.py",))
    assert died.returncode != 0
    assert "Signal 9 (SIGKILL)" in died.stderr
    assert 0 < json.loads((output / "search/state.json").read_text())["generation"] < 4
    assert not (output / "genome.json").exists()
    if ranks_again == 1:
        darwinlm.search_genome(str(output))
    else:
        done = torchrun("search", *asked, "--output", output)
        assert done.returncode == 0, done.stderr
    assert (output / "genome.json").read_bytes() == (run / "genome.json").read_bytes()
    assert history(output) == history(run)


def test_two_ranks_prune_to_the_end(one_rank, tmp_path):
    _, (_, model, *asked) = one_rank
    done = torchrun("prune", model, *asked, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Held-out text") == 1
    assert (tmp_path / "run/summary.json").exists()


def test_a_refusal_ends_all_ranks(one_rank, tmp_path):
    _, asked = one_rank
    done = torchrun("search", *asked, "--output", tmp_path / "run")
    assert done.returncode != 0
    assert "holds no database yet" in done.stderr


PERTURBED = """
import os, sys
from unittest import mock
import torch
from darwinlm.runtime import ranks
from darwinlm.search import evolution, selection
mean, std, share_out = torch.Tensor.mean, torch.Tensor.std, ranks.share_out
second = os.environ["RANK"] == "1"
def steered(kind, method):
    original = getattr(kind, method)
    def call(*asked):
        off = 1 + second * 2.0**-40
        with (
            mock.patch.object(torch.Tensor, "mean", lambda *given, **more: mean(*given, **more) * off),
            mock.patch.object(torch.Tensor, "std", lambda *given, **more: std(*given, **more) * off * (1 + 9 * second)),
            mock.patch.object(ranks, "share_out", lambda costs: [rank ^ second for rank in share_out(costs)]),
        ):
            return original(*asked)
    setattr(kind, method, call)
steered(selection.TrainedFitness, "__call__")
steered(evolution.Evolution, "tell")
from darwinlm.cli import main
main(sys.argv[1:])
"""


def test_ranks_that_calculate_otherwise_decide_alike(one_rank, tmp_path):
    """The second rank's own means, deviations and shares are off; what is decided is the first one's."""
    run, asked = one_rank
    without_search(run, tmp_path / "run")
    (tmp_path / "perturbed.py").write_text(PERTURBED)
    done = torchrun("search", *asked, "--output", tmp_path / "run", program=(tmp_path / "perturbed.py",))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/genome.json").read_bytes() == (run / "genome.json").read_bytes()
    assert [line["improved"] for line in history(tmp_path / "run")] == [line["improved"] for line in history(run)]


EXCHANGES = """
from darwinlm.runtime import ranks
ranks.join()
rank, world = ranks.rank(), ranks.world_size()
assert ranks.all_gather(rank) == list(range(world))
assert ranks.broadcast({"best": rank, "kl": 0.5 + rank * 2**-53}) == {"best": 0, "kl": 0.5}
ranks.end_together()
"""


def test_ranks_exchange_and_the_first_decides(tmp_path):
    (tmp_path / "exchanges.py").write_text(EXCHANGES)
    done = torchrun(program=(tmp_path / "exchanges.py",))
    assert done.returncode == 0, done.stderr


def test_a_single_process_is_one_rank():
    assert (ranks.rank(), ranks.world_size(), ranks.all_gather("x")) == (0, 1, ["x"])
    assert ranks.broadcast("x") == "x"
    assert ranks.interleave([[0, 2, 4], [1, 3]]) == [0, 1, 2, 3, 4]


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.integers(0, 50)), max_size=12))
def test_items_are_shared_out_and_none_is_left(world: int, items: list[tuple[int, int, int]]):
    """Each is `saved` cheaper on the rank that it lies on."""
    costs = [[cost + saved * (rank != lies % world) for rank in range(world)] for lies, cost, saved in items]
    share = ranks.share_out(costs)
    assert len(share) == len(items)
    assert set(share) <= set(range(world))
    if items:
        done = [sum(costs[i][r] for i in range(len(items)) if share[i] == r) for r in range(world)]
        assert max(done) <= min(sum(column) for column in zip(*costs, strict=True))  # not more than one rank alone


@pytest.mark.parametrize(
    ("costs", "most"),
    [
        ([[2, 2]] * 8, 8),  # nothing lies anywhere yet
        ([[2, 4], [2, 4], [4, 2], [4, 2]], 4),  # two survivors on each rank
        ([[4, 8], [4, 8], [8, 8]], 8),  # both survivors on one rank, and the parent on the other
        ([[4, 8], [8, 4], [8, 8]], 12),
        ([[2, 4], [2, 4], [2, 4], [2, 4]], 6),  # one moves
    ],
)
def test_survivors_stay_where_they_are_unless_that_takes_longer(costs: list[list[int]], most: int):
    share = ranks.share_out(costs)
    assert max(sum(row[r] for row, where in zip(costs, share) if where == r) for r in range(2)) == most
