"""Bad input as a user types it: one message with the remedy, exit code 2, before any long work."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import darwinlm
import pico
from darwinlm.cli import COMMANDS, main, read
from darwinlm.cli.help import BASIC, EXAMPLES
from darwinlm.config import PRESETS, preset_values
from darwinlm.config.described import all_settings


def flags(**values: object) -> list[str]:
    """`--group.name value` for group__name=value."""
    return [word for name, value in values.items() for word in (f"--{name.replace('__', '.')}", str(value))]


PRUNE = flags(
    blocks__sequence_length=32,
    blocks__hessian=8,
    blocks__train=4,
    blocks__select=4,
    blocks__held_out=4,
    database__levels=4,
    database__multiple_of=4,
    target__level=2,
    search__generations=1,
    search__offspring=2,
    search__survivors=[1],
    search__train_tokens=[32],
    search__select_tokens=[32],
)


WITHOUT_TARGET = [word for place, word in enumerate(PRUNE) if PRUNE.index("--target.level") not in (place, place - 1)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("some text that repeats; " * 200)
    return path


@pytest.fixture(autouse=True)
def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused must be refused before the database is begun."""

    def begun(*arguments: object, **options: object) -> None:
        raise AssertionError("long work began")

    monkeypatch.setattr("darwinlm.run.stages.build_database", begun)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command line says when it exits with code 2."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err


def test_no_model_there(capsys, text, tmp_path):
    said = refused(capsys, "prune", "./no-such-model", "--data", text, "--output", tmp_path / "run")
    assert "There is no model folder './no-such-model'" in said
    assert not (tmp_path / "run").exists()


def test_hub_id_that_cannot_be_had(capsys, text, tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*arguments: object, **options: object) -> None:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("darwinlm.models.hub.snapshot_download", offline)
    said = refused(capsys, "prune", "nobody/nothing", "--data", text, "--output", tmp_path / "run")
    assert "the hub cannot be reached" in said


def test_unknown_family_lists_those_we_know(capsys, text, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "mamba"}))
    said = refused(capsys, "prune", tmp_path / "model", "--data", text, "--output", tmp_path / "run")
    assert "'mamba'" in said
    assert all(f" {name}," in said for name in ("gemma3_text", "llama", "mistral", "qwen3"))


def test_tokenizer_that_does_not_fit(capsys, text, tmp_path):
    folder = pico.make_checkpoint(tmp_path / "model", "llama_gqa", vocab_size=200, bos_token_id=0, eos_token_id=0)
    said = refused(capsys, "prune", folder, "--data", text, "--output", tmp_path / "run", *PRUNE)
    assert "257 tokens, but the embedding only 200 rows" in said


def test_too_few_tokens_says_how_many(capsys, checkpoint, tmp_path):
    (tmp_path / "short.txt").write_text("x" * 100)
    said = refused(
        capsys, "prune", checkpoint("llama_gqa"), "--data", tmp_path / "short.txt", "--output", tmp_path / "r", *PRUNE
    )
    assert "has 96 tokens in whole blocks of 32, but the splits need 640" in said


@pytest.mark.parametrize("level", ["0", "4", "-1", "7.5"])
def test_target_out_of_reach(level, capsys, checkpoint, text, tmp_path):
    arguments = ["--data", text, "--output", tmp_path / "run", *PRUNE, f"--target.level={level}"]
    said = refused(capsys, "prune", checkpoint("llama_gqa"), *arguments)
    assert "must lie between 0 (dense) and 4 (nothing left)" in said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ("--target.parameters", "1K"),
            "target.parameters 1K cannot be met: it allows 1,000 parameters, and with every",
        ),
        (("--target.memory", "10TB"), "holds the target as it is"),
        (("--target.parameters", "60 percent"), "target.parameters is '60 percent', which cannot be read"),
        (("--target.speedup", "2x"), "darwinlm bench MODEL --table"),
        (("--target.speedup", "2x", "--target.latency_table", "none.json"), "There is no latency table 'none.json'"),
        (("--targets", "20K,1K"), "target.parameters 1K cannot be met"),
        (("--targets", "20K,2x"), "--targets must be of one kind"),
    ],
)
def test_hard_targets_out_of_reach(typed, said, capsys, checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--data", text, "--output", tmp_path / "run", *WITHOUT_TARGET, *typed]
    assert said in refused(capsys, "prune", checkpoint("llama_gqa"), *asked)
    assert not (tmp_path / "run/database").exists()


@pytest.mark.parametrize("survivors", ["[2,2,1]", "[4,2]", "[1,2]", "[]"])
def test_survivors_must_decrease_to_one(survivors, capsys, checkpoint, text, tmp_path):
    arguments = ["--data", text, "--output", tmp_path / "run", *PRUNE, "--search.survivors", survivors]
    assert "search.survivors" in refused(capsys, "prune", checkpoint("llama_gqa"), *arguments)


def test_all_faults_at_once(capsys, checkpoint):
    said = refused(capsys, "prune", checkpoint("llama_gqa"), "--target.level", 99, "--seed", 1)
    assert [word in said for word in ("No data", "No output", "target.level is 99")] == [True] * 3
    said = refused(capsys, "prune", "--database.levels", 1, "--search.offspring", 0)
    words = ("database.levels is 1", "search.offspring is 0", "No model", "No data", "No output")
    assert [word in said for word in words] == [True] * 5
    assert said.count("darwinlm: ") == 5
    said = refused(capsys, "prune", checkpoint("llama_gqa"), "--target.level", 99, "--search.offspring", 0, "--seed", 1)
    assert said.count("darwinlm: ") >= 2


def test_data_and_output_are_asked_for(capsys, checkpoint):
    said = refused(capsys, "prune", checkpoint("llama_gqa"))
    assert "No data is given" in said
    assert "No output is given" in said


@pytest.mark.parametrize("data", ["missing.txt", "no-such-folder", "picture.png", "empty/"])
def test_data_that_is_not_there(data, capsys, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("picture.png").write_bytes(b"png")
    Path("empty").mkdir()
    said = refused(capsys, "prune", checkpoint("llama_gqa"), "--data", data, "--output", "run", *PRUNE)
    assert data.rstrip("/") in said


def test_nothing_is_there_yet(capsys, checkpoint, text, tmp_path):
    asked = ["--model", checkpoint("llama_gqa"), "--data", text, "--output", tmp_path / "run", *PRUNE]
    assert "holds no database yet. Run `darwinlm database" in refused(capsys, "search", *asked)
    assert "holds no database yet" in refused(capsys, "export", "--output", tmp_path / "run")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["prun"], "no command 'prun'. Did you mean prune?"),
        (["-v"], "no command '-v'. The commands are: prune,"),
        (["help", "trian"], "Did you mean train?"),
        (["help", "train", "serach"], "no group of settings 'serach'; it has blocks, train"),
        (["completion", "fish"], "one of bash, zsh, tcsh"),
        (["prune", "m", "--search.generation", "3"], "Did you mean --search.generations?"),
        (["prune", "m", "--target", "5"], "--target is a group of settings; give one of --target.level, "),
        (["prune", "m", "--levels", "5"], "it belongs to compare. Did you mean --database.levels or --target.level?"),
        (["prune", "m", "-x"], "no flag -x."),
        (["prune", "m", "--data"], "--data needs a value"),
        (["prune", "m", "n"], "'n' is one word too many: darwinlm prune takes MODEL"),
        (["prune", "m", "--model", "n"], "model is given twice: 'm' and 'n'"),
        (["prune", "m", "--search.training", "distil"], "distillation or refit. Did you mean distillation?"),
        (["eval", "m", "--limit", "few"], "--limit is 'few'; it must be a whole number"),
        (["database", "--check", "--rebuild"], "--rebuild does not go with --check"),
        (["bench", "m", "--bench.batch-sizes", "a"], "must be a list of whole numbers, such as [1, 2]"),
        (["prune", "m", "--search.generations", "many"], "search.generations"),
        (["bench", "m", "--bench.batch-sizes", "[1, 8"], "--bench.batch_sizes is '[1, 8', which cannot be read"),
        (["prune", "m", "--target.level", "{"], "--target.level is '{', which cannot be read"),
        (["prune", "m", "--target.parameters", "-5%"], "target.parameters is '-5%'"),
        (["prune", "m", "--targets", "50%,60%", "--target.parameters", "80%"], "so leave out --target.parameters"),
        (["plan", "x" * 300], "is too long for the name of a file"),
        (["bench", "m", "--output", __file__], "is a file; --output is a folder"),
        (["prune", "m", "--preset", "huge"], "the presets are: demo, quick, paper"),
        (["prune", "m", "--config", "none.yaml"], "Cannot read the settings in 'none.yaml'"),
        (["plan"], "No model is given"),
        (["prune"], "No output is given: --output with a run directory"),
        (["prune", "m", "t"], "takes MODEL, and flags such as --data and --output."),
        (["prune", "m", "--target.parameters", "60"], "60, which are 60 parameters. Do you mean 60%?"),
        (["export", "nowhere"], "There is no checkpoint folder 'nowhere'"),
        (["eval", "m"], "There is no model folder 'm'"),
    ],
)
def test_mistyped(typed, said, capsys):
    assert said in refused(capsys, *typed)


def test_a_run_in_the_place_of_its_model_and_devices_that_are_none(capsys, checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(checkpoint("llama_gqa"))
    said = refused(capsys, "eval", tmp_path / "run", "--data", "stdlib")
    assert f"no Hugging Face checkpoint. Its model is '{tmp_path / 'run/model'}'" in said
    said = refused(capsys, "eval", tmp_path / "run/model", "--data", "stdlib", "--device", "gpu")
    assert (
        "Device 'gpu' cannot be used (no such device). Leave --device at auto, or choose cpu, cuda or cuda:1." in said
    )


def test_unknown_setting_in_a_file(capsys, tmp_path):
    (tmp_path / "settings.yaml").write_text("search: {generatoins: 3}\nserch: {}")
    said = refused(capsys, "prune", "m", "--config", tmp_path / "settings.yaml")
    assert "'search.generatoins'. Did you mean search.generations?" in said
    assert "'serch'. Did you mean search?" in said


def test_eval_does_not_complain_of_a_search(capsys, checkpoint, text):
    main(
        [
            "eval",
            str(checkpoint("llama_gqa")),
            "--data",
            str(text),
            *flags(blocks__sequence_length=32, blocks__held_out=4),
        ]
    )
    assert "First blocks of" in capsys.readouterr().out


def test_another_process_is_working_there(capsys, checkpoint, text, tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refused(capsys, "prune", checkpoint("llama_gqa"), "--data", text, "--output", tmp_path / "run", *PRUNE)
    assert "Another process is working" in said


def test_pickles_are_not_read(capsys, checkpoint, text, tmp_path):
    folder = shutil.copytree(checkpoint("llama_gqa"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refused(capsys, "prune", folder, "--data", text, "--output", tmp_path / "run", *PRUNE)
    assert "holds no safetensors weights" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    main(["help"])
    assert f"  {name} " in capsys.readouterr().out
    main([name, "--help"])
    short = capsys.readouterr().out
    main([name, "--help-all"])
    whole = capsys.readouterr().out
    assert all(f"--{name}" in whole for name in command.options if name not in command.words)
    assert sum(f"--{setting}" in short for setting in command.settings) <= 17
    assert max(map(len, (short + whole).splitlines())) < 80
    for group in command.groups:
        main(["help", name, group])
        listed = re.findall(r"^  --(\S+)", capsys.readouterr().out, re.M)
        assert listed == [setting for setting in command.settings if setting.startswith(f"{group}.")]
    for example in EXAMPLES.get(name, ()):
        read(name, shlex.split(example.split(">")[0]))


def test_what_help_shows_at_first_is_there():
    assert {setting for command in COMMANDS.values() for setting in command.settings} >= BASIC
    assert all(option.text for command in COMMANDS.values() for option in command.options.values())


def test_dashes_and_underscores_switches_and_lists():
    typed = ["m", "--bench.batch-sizes=1,8", "--latency-table", "t.json", "--database.tensor-parallel", "2", "-q"]
    plain = ["m", "--bench.batch_sizes", "[1, 8]", "--latency_table=t.json", "--database.tensor_parallel=2", "--quiet"]
    assert read("bench", typed) == read("bench", plain)
    assert read("prune", ["--search.diverse", "m"]) == read("prune", ["m", "--search.diverse", "true"])
    assert read("export", ["--portable", "m"]).arguments == {"model": "m", "portable": True}
    assert read("prune", ["--blocks.held-out-data", "none"]).arguments == {"blocks": {"held_out_data": None}}


def test_a_flag_may_call_another_function():
    assert read("bench", ["m", "--table"]).call is darwinlm.measure_latency
    assert read("prune", ["m", "--targets", "3B,4B"]).call is darwinlm.prune_family
    assert read("plan", ["--recipe", "r.yaml", "m"]).arguments == {"recipe": "r.yaml", "model": "m"}
    assert read("database", ["--show", "--output", "r"]).arguments == {"show": True, "output": "r"}


def test_help_version_and_mistakes_come_without_torch():
    program = "import sys; from darwinlm.cli import main\ntry: main({})\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    for typed in (
        ["--help"],
        ["--version"],
        ["prune", "--help-all"],
        ["prune", "m", "--seed", "x"],
        ["schema", "--help"],
    ):
        done = subprocess.run([sys.executable, "-c", program.format(typed)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False", typed


def test_the_schema_knows_every_setting_and_the_presets_fit_it(capsys):
    main(["schema"])
    schema = json.loads(capsys.readouterr().out)
    for name, setting in all_settings().items():
        node = schema
        for part in name.split("."):
            assert node["additionalProperties"] is False
            node = node["properties"][part]
        assert node["description"] == setting.text
    for preset in PRESETS:
        assert not [key for key in preset_values(preset) if key not in schema["properties"]]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell, capsys):
    main(["completion", shell])
    script = capsys.readouterr().out
    assert all(word in script for word in ("--target.parameters", "kv_group", *COMMANDS))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
