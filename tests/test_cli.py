"""`python -m oral_lib`: every failure is one clear line and the promised exit code."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from oral_lib import paths, scales
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.runner import worker
from oral_lib.workflow import cli, notebooks


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the modules that compute; remembers how they were called."""
    made = []

    class Run:
        def __init__(self, *where):
            self.where = where

        def __getattr__(self, name):
            return lambda *args: made.append((name, self.where, args))

    class Lora:
        def save(self, folder):
            made.append(("save", folder))
            return folder

    def prompt(text, **rest):
        made.append(("prompt", text, rest["base"]))
        return [Lora()] * rest["n"]

    stand_ins = {"workflow.run": SimpleNamespace(Run=Run)}
    stand_ins["generator"] = SimpleNamespace(prompt=prompt)
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, f"oral_lib.{name}", module)
        monkeypatch.setattr(f"oral_lib.{name}", module, raising=False)
    return made


def test_zoo_trains_the_seeds_of_the_scale(calls, tmp_path):
    words = ["zoo", "--base", "tiny-encoder", "--task", "movie", "--scale", "smoke"]
    assert cli.main([*words, "--out", str(tmp_path)]) == 0
    where = ("smoke", "packages", tmp_path, "language")
    assert calls == [("train_zoo", where, ("tiny-encoder", ["movie"], [0, 1, 2]))]


def test_train_trains_the_generator_or_the_baseline_of_a_run(calls):
    for kind in scales.generators("lab"):
        calls.clear()
        assert cli.main(["train", kind, "--scale", "lab", "--source", "hub"]) == 0
        where = ("lab", "hub", paths.ROOT)
        assert calls == [("train_generator", (*where, "language"), (kind,))]
        calls.clear()
        words = ["train", kind, "--scale", "lab", "--source", "hub", "--experiment", "vision"]
        assert cli.main(words) == 0
        assert calls == [("train_generator", (*where, "vision"), (kind,))]


def test_a_base_model_says_which_experiment_is_meant(calls):
    words = ["zoo", "--base", "tiny-vit", "--task", "solar_cells", "--scale", "smoke"]
    assert cli.main(words) == 0
    assert calls[0][1] == ("smoke", "packages", paths.ROOT, "vision")


def test_tune_takes_the_tasks_of_the_scale_and_evolve_a_version(calls, capsys):
    where = ["--scale", "desk", "--base"]
    assert cli.main(["tune", *where, "smollm2-135m"]) == 0
    assert cli.main(["evolve", *where, "smollm2-135m-t4"]) == 0
    desk = ("desk", "packages", paths.ROOT, "language")
    assert calls == [
        ("tune", desk, ("smollm2-135m", ["movie", "sarcasm"])),
        ("evolve", desk, ("smollm2-135m-t4",)),
    ]


def test_what_only_the_tests_read_is_fetched_only_for_them(monkeypatch, tmp_path):
    from oral_lib.assets import sources
    from oral_lib.runner import checks

    asked = []
    monkeypatch.setattr(
        sources, "prepare", lambda *given, experiment, **rest: asked.append(experiment)
    )
    monkeypatch.setattr(sources, "lm_eval_wheel", lambda *, offline: asked.append(offline))
    words = ["assets", "--scale", "smoke", "--out", str(tmp_path)]
    assert cli.main(words) == 0 and asked == ["language"]
    assert cli.main([*words, "--tests", "--offline"]) == 0
    assert asked[1:] == [*scales.EXPERIMENT_NAMES, True]
    assert "--tests" in checks.steps()[0].command


@pytest.mark.parametrize("scale", ["desk", "lab"])
def test_what_runs_by_itself_runs_at_the_scale_of_the_machine(scale, monkeypatch):
    monkeypatch.setattr(scales, "default_scale", lambda: scale)
    assert cli.parser().parse_args(["report"]).scale == scale


def test_generate_takes_a_sentence_a_base_and_a_new_folder(calls, tmp_path, capsys):
    folder = tmp_path / "lora"
    words = ["generate", "--task", "a b", "--base", "minilm-l6", "--out", str(folder)]
    assert cli.main(words) == 0
    assert calls == [("prompt", "a b", "minilm-l6"), ("save", folder)]
    assert cli.main([*words, "--n", "2"]) == 0
    assert calls[3:] == [("save", folder / "sample-0"), ("save", folder / "sample-1")]
    folder.mkdir()
    (folder / "something").touch()
    assert cli.main(words) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zoo", "--base", "minilm-l7", "--task", "movie"], "Did you mean 'minilm-l6'?"),
        (["zoo", "--base", "minilm-l6", "--task", "movei"], "Did you mean 'movie'?"),
        (["tune", "--base", "minilm-l7"], "Did you mean 'minilm-l6'?"),
        (["assets", "--source", "package"], "unknown source 'package'"),
    ],
)
def test_a_name_that_does_not_exist_gives_2_and_the_nearest(calls, capsys, words, message):
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize("words", [["zo"], ["zoo"], ["train", "x"], ["zoo", "--seed", "1"], []])
def test_a_command_line_that_cannot_be_meant_gives_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OralError("it broke"), 1, "oral: it broke"),
        (UsageError("no such thing"), 2, "oral: no such thing"),
        (PreflightError("no space"), 3, "oral: no space"),
        (KeyboardInterrupt(), 130, "oral: interrupted"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(monkeypatch, capsys, error, code, line):
    def fail(folder):
        raise error

    monkeypatch.setattr(notebooks, "write_twins", fail)
    assert cli.main(["twins"]) == code
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_bug_gives_1_one_line_and_a_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(worker.EVENTS, raising=False)
    monkeypatch.setattr(notebooks, "write_twins", lambda folder: 1 / 0)
    assert cli.main(["twins"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("oral: ZeroDivisionError: division by zero")
    assert "ZeroDivisionError" in (tmp_path / "oral-error.log").read_text()


def test_twins_check_gives_1_and_changes_nothing_when_one_differs(tmp_path, capsys):
    (tmp_path / "one.py").write_text("# %%\n1 + 1\n")
    check = ["twins", "--check", "--folder", str(tmp_path)]
    assert cli.main(check) == 1
    assert "one.ipynb" in capsys.readouterr().err and not (tmp_path / "one.ipynb").exists()
    assert cli.main(["twins", "--folder", str(tmp_path)]) == 0
    assert cli.main(check) == 0


def test_help_of_the_module_states_the_exit_codes_without_any_package():
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    words = [sys.executable, "-S", "-m", "oral_lib", "--help"]  # -S: no site-packages
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "3 preflight" in done.stdout
