"""`python -m oral_lib`: every failure is one clear line and the promised exit code."""

import argparse
import errno
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from oral_lib import paths, scales
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.runner import worker
from oral_lib.workflow import cli, notebooks, parsing


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
        task = None

        def save(self, folder):
            made.append(("save", folder))
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(bytes(10**6))
            return folder

    def prompt(text, **rest):
        made.append(("prompt", text, rest["base"], rest["generator"], rest["source"]))
        return [Lora()] * rest["n"]

    stand_ins = {"workflow.run": SimpleNamespace(Run=Run)}
    stand_ins["prompting.prompt"] = SimpleNamespace(prompt=prompt)
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
    assert cli.parser().parse_args(["bench"]).scale == scale


# ---------------------------------------------------------------- generate
def store_generator(out, scale, source, *bases, experiment="language", recorded=""):
    """The files of a generator that the command line reads; returns its folder."""
    run = paths.experiment_folder(scale, source, out, experiment)
    folder = run / "generator"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"bases": {base: {} for base in bases}}))
    content = {"scale": scale, "source": source.partition(":")[0]}
    (folder / "manifest.json").write_text(json.dumps(content))
    if recorded:
        (run / "source.json").write_text(json.dumps({"source": recorded}))
    return folder


@pytest.fixture
def run_root(tmp_path):
    """A folder with runs/ in which the scale desk has a generator."""
    store_generator(tmp_path / "out", "desk", "packages", "minilm-l6", "smollm2-135m")
    return tmp_path / "out"


@pytest.fixture
def words(run_root, tmp_path):
    """The command line of a generate that works."""
    save = ["--save", str(tmp_path / "lora")]
    return ["generate", "--text", "a b", "--base", "minilm-l6", "--out", str(run_root), *save]


def test_generate_takes_a_sentence_a_base_and_a_new_folder(
    calls, words, run_root, tmp_path, capsys
):
    folder, generator = tmp_path / "lora", run_root / "runs" / "desk" / "packages" / "generator"
    assert cli.main(words) == 0
    assert calls == [("prompt", "a b", "minilm-l6", generator, "packages"), ("save", folder)]
    said = capsys.readouterr()
    assert said.out == f"{folder}\n" and said.err.endswith(f"saved: {folder} (1.0 MB)\n")
    shutil.rmtree(folder)
    assert cli.main([*words, "--n", "2"]) == 0
    assert calls[3:] == [("save", folder / "sample-1"), ("save", folder / "sample-2")]
    assert f"saved: {folder} (2 adapters, 2.0 MB)" in capsys.readouterr().err


def test_the_older_spellings_of_generate_are_taken_with_a_note(calls, run_root, tmp_path, capsys):
    generator = ["--generator", str(run_root / "runs" / "desk" / "packages" / "generator")]
    old = ["generate", "--task", "a b", "--base", "minilm-l6", "--out", str(tmp_path / "lora")]
    assert cli.main([*old, *generator]) == 0
    assert calls[0][1] == "a b" and calls[1] == ("save", tmp_path / "lora")
    notes = capsys.readouterr().err.splitlines()
    assert "--text" in notes[0] and "--save" in notes[1] and notes[2].startswith("saved: ")
    assert cli.main([*old[:-1], str(run_root), *generator]) == 2  # it has runs/
    assert "--save is missing" in capsys.readouterr().err
    assert cli.main([*old, *generator, "--text", "c"]) == 2


@pytest.mark.parametrize(
    ("stored", "options", "expected"),
    [
        ([("smoke", "made"), ("desk", "packages"), ("lab", "packages")], [], "lab (packages)"),
        ([("smoke", "made"), ("lab", "local:/data"), ("lab", "hub")], [], "lab (local)"),
        ([("smoke", "made")], [], "smoke (made)"),
        ([("smoke", "made"), ("lab", "packages")], ["--scale", "smoke"], "smoke (made)"),
        ([("lab", "packages"), ("lab", "hub")], ["--source", "hub"], "lab (hub)"),
    ],
)
def test_a_run_that_exists_is_taken_whatever_the_machine_and_named(
    calls, tmp_path, capsys, monkeypatch, stored, options, expected
):
    out = tmp_path / "out"
    for scale, source in stored:
        store_generator(out, scale, source, "minilm-l6", recorded=source)
    for machine in ("desk", "lab"):
        monkeypatch.setattr(scales, "default_scale", lambda machine=machine: machine)
        save = str(tmp_path / machine)
        where = ["--base", "minilm-l6", "--out", str(out), "--save", save, *options]
        assert cli.main(["generate", "--text", "a", *where]) == 0
        said = capsys.readouterr().err
        assert f"that of the run {expected} in " in said
        assert ("choose another" in said) == (len(stored) > 1 and not options)
    assert calls[0][4] in ("packages", "made", "hub", "local:/data")  # the folder is recorded
    assert ("local" in expected) == (calls[0][4] == "local:/data")


def test_a_base_model_is_looked_up_in_the_generators_themselves(calls, words, capsys):
    words[words.index("minilm-l6")] = "minilm-l7"
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'minilm-l6'?" in said and "desk (packages) has minilm-l6, smoll" in said
    assert cli.main([*words, "--scale", "lab"]) == 3 and calls == []


def test_a_damaged_generator_is_named_not_passed_over(calls, words, run_root, capsys):
    damaged = store_generator(run_root, "lab", "packages", "minilm-l6")
    (damaged / "config.json").write_text("{")
    assert cli.main(words) == 1 and str(damaged) in capsys.readouterr().err
    assert cli.main([*words, "--scale", "desk"]) == 0
    assert cli.main(["bases", "--out", str(run_root)]) == 0
    said = capsys.readouterr().out
    assert f"not usable: {damaged}" in said and "smollm2-135m" in said


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "a\x1bb", "\x07" * 9, "x" * 10**6])
def test_a_text_that_nobody_can_read_gives_2_and_one_line(calls, words, capsys, text):
    words[words.index("a b")] = text
    assert cli.main(words) == 2 and calls == []
    [line] = capsys.readouterr().err.splitlines()
    assert len(line) < 250


def test_a_text_comes_from_standard_input(calls, words, monkeypatch):
    words[words.index("a b")] = "-"
    for content, code in ((" Prüfe es.\n".encode(), 0), (b"caf\xe9", 2), (b"", 2)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert cli.main(words) == code
    assert [call[1] for call in calls if call[0] == "prompt"] == ["Prüfe es."]


def test_a_folder_that_cannot_be_saved_to_is_refused_before_anything_runs(
    calls, words, tmp_path, capsys, monkeypatch
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    (tmp_path / "file").touch()
    cases = {"full": "is not empty", "file": "is a file", "file/lora": "is a file"}
    cases |= {"x" * 300: "File name too long"}
    for name, message in cases.items():
        words[-1] = str(tmp_path / name)
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert message in said and "--save" in said and len(said.splitlines()) == 1
    monkeypatch.setattr(os, "access", lambda *given: False)
    words[-1] = str(tmp_path / "new" / "lora")
    assert cli.main(words) == 2 and "cannot be written" in capsys.readouterr().err
    assert calls == [] and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("generate --text a --base b --save c --generator d --scale lab", "--scale"),
        ("generate --text a --base b --save c --generator d --out e", "--out"),
        ("bases --generator a --source hub", "--source"),
        ("train generator --steps 3", "--steps"),
        ("train regression --save a", "--save"),
        ("train --manifest a --save b --scale desk", "--scale"),
        ("train --manifest a --save b --experiment vision", "--experiment"),
        ("assets --tests --experiment vision", "--experiment"),
    ],
)
def test_an_option_without_effect_is_refused(calls, capsys, tmp_path, monkeypatch, line, option):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    assert f"oral: {option} has no effect with" in capsys.readouterr().err and calls == []


# ---------------------------------------------------------------- lists
def test_bases_lists_what_the_generators_say_and_the_rest_apart(run_root, capsys):
    store_generator(run_root, "lab", "packages", "minilm-l6")
    store_generator(run_root, "lab", "packages", "towers", experiment="multimodal")
    assert cli.main(["bases", "--out", str(run_root)]) == 0
    here, _, rest = capsys.readouterr().out.partition("further base models")
    [row] = [line.split() for line in here.splitlines() if line.startswith("  minilm-l6 ")]
    assert row == ["minilm-l6", "encoder", "lab", "(packages),", "desk", "(packages)"]
    assert "  towers " in here and " towers," not in rest and " efficientnet-lite0," in rest
    other = store_generator(run_root / "x", "lab", "packages", "their-model")
    assert cli.main(["bases", "--generator", str(other)]) == 0
    assert "their-model" in capsys.readouterr().out.partition("further base models")[0]
    assert cli.main(["bases", "--generator", str(run_root)]) == 3


def test_tasks_lists_all_and_shows_one(capsys, tmp_path, monkeypatch):
    from oral_lib.tasks.task import task_names

    folder = store_generator(tmp_path, "smoke", "made", "tiny-causal")
    (folder / "manifest.json").write_text('{"zoo": [{"task": "movie"}]}')
    monkeypatch.setattr(paths, "RELEASED", folder.parent)
    assert cli.main(["tasks"]) == 0
    rows = capsys.readouterr().out.splitlines()
    listed = [row.split() for row in rows[2 : len(task_names()) + 2]]
    assert [row[0] for row in listed] == task_names()
    assert {row[0] for row in listed if row[1] == "yes"} >= {"movie"}
    for part in ("train", "validation"):
        (tmp_path / "sst2").mkdir(exist_ok=True)
        (tmp_path / "sst2" / f"{part}.parquet").touch()
    assert cli.main(["tasks", "--source", f"local:{tmp_path}"]) == 0
    here = {row.split()[0]: row.split()[-1] for row in capsys.readouterr().out.splitlines() if row}
    assert (here["sst2"], here["boolq"], here["movie"]) == ("yes", "no", "-")
    assert cli.main(["tasks", "movie"]) == 0
    assert "movie review" in capsys.readouterr().out
    assert cli.main(["tasks", "moive"]) == 2 and "'movie'" in capsys.readouterr().err


def test_a_broken_task_file_is_listed_and_breaks_no_other(monkeypatch, capsys):
    from oral_lib.tasks import task

    def load(name, load=task.load_task):
        if name == "movie":
            raise UsageError("movie.yaml:3: it is broken")
        return load(name)

    monkeypatch.setattr(task, "load_task", load)
    assert cli.main(["tasks"]) == 0
    said = capsys.readouterr().out
    assert "broken: movie: movie.yaml:3" in said and "\n  sarcasm " in said


# ---------------------------------------------------------------- report
@pytest.fixture
def published(tmp_path):
    from made_results import made

    from oral_lib.evaluation import results

    out = tmp_path / "checkout"
    cell = results.write_cell(tmp_path / "cell", *made())
    results.collect([cell], out / "results" / "desk")
    return out


def test_report_needs_no_run_and_leaves_the_report_alone(published, capsys):
    assert cli.main(["report", "--out", str(published)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(published / "results" / "README.md")
    assert "report is made of desk" in said.err
    assert [path.name for path in published.iterdir()] == ["results"]
    assert sorted(p.name for p in (published / "results").iterdir()) == ["README.md", "desk"]


def test_report_without_any_results_says_what_to_do(tmp_path, capsys):
    for words in ([], ["--scale", "lab"]):
        assert cli.main(["report", "--out", str(tmp_path / "x"), *words]) == 3
        assert "./reproduce.sh first" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_report_on_a_disk_that_is_only_read_is_one_line(published, capsys, monkeypatch):
    from oral_lib.report import build

    def refuse(path, text):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(build, "write_text", refuse)
    assert cli.main(["report", "--out", str(published)]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("oral: ") and "Read-only file system: use a folder on" in line


@pytest.mark.parametrize(
    "line",
    [
        "zoo --base tiny-encoder --scale smoke",
        "train generator --scale smoke",
        "cells --base tiny-encoder --scale smoke",
        "report",
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(
    calls, published, capsys, monkeypatch, line
):
    monkeypatch.setattr(os, "access", lambda *given: False)
    assert cli.main([*line.split(), "--out", str(published)]) == 3 and calls == []
    assert capsys.readouterr().err.endswith("cannot be written: name another folder with --out.\n")
    (published / "runs").touch()
    if line != "report":
        assert cli.main([*line.split(), "--out", str(published)]) == 3
        assert "runs is a file" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
def test_a_folder_in_which_nothing_can_be_created_is_refused_whoever_asks(calls, capsys):
    line = "zoo --base tiny-causal --scale smoke --task movie --out /proc/none"
    assert cli.main(line.split()) == 3 and calls == []
    assert "/proc cannot be written: name another folder" in capsys.readouterr().err


def test_report_publishes_the_largest_run_that_has_cells(calls, tmp_path, capsys):
    for scale, source in (("smoke", "made"), ("desk", "packages")):
        root = paths.experiment_folder(scale, source, tmp_path)
        (root / "cells" / "x").mkdir(parents=True)
        (root / "cells" / "x" / "metrics.csv").touch()
    assert cli.main(["report", "--out", str(tmp_path)]) == 0
    assert cli.main(["report", "--out", str(tmp_path), "--scale", "smoke"]) == 0
    assert [call[:2] for call in calls] == [
        ("publish", ("desk", "packages", tmp_path, "language")),
        ("publish", ("smoke", "made", tmp_path, "language")),
    ]
    assert "choose another: smoke (made)" in capsys.readouterr().err


# ---------------------------------------------------------------- exit codes
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zoo"], "name a base model with --base"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zo"], "unknown command 'zo'. Did you mean 'zoo'?"),
        (["train", "x"], "unknown KIND 'x'"),
        (["zoo", "--base", "a", "--seed", "1"], "unknown option '--seed'. Did you mean '--seeds'?"),
        (["generate", "--txt", "a"], "unknown option '--txt'. Did you mean '--text'?"),
        (["generat", "--text"], "Did you mean 'generate'?"),
        (["--verson"], "unknown option '--verson'. Did you mean '--version'?"),
        (["zoo", "--base", "a", "--scale", "dsk"], "Did you mean 'desk'?"),
        (["bases", "more"], "'more' is one argument too many"),
        (["bases", "-x"], "unknown option '-x'"),
        (["generate", "--base", "a", "--text", "is", "it"], "'it' is one argument too many: put a"),
        (["sweep", "x", "--jobs", "0"], "'0' is not a whole number from 1"),
        (["sweep", "x", "--jobs", "two"], "'two' is not a whole number"),
        (["generate", "--seed", "x"], "'x' is not a whole number"),
        (["generate", "--seed", "-1"], "'-1' is not a whole number"),
        (["generate", "--n", "0"], "'0' is not a whole number"),
        (["generate", "--n", "9" * 5000], "is not a whole number"),
        (["generate", "--save", ""], "'' is not the name of a file or folder"),
        (["train", "--steps", "1e3"], "'1e3' is not a whole number"),
        (["report", "--out", ""], "'' is not the name"),
        ([], "COMMAND"),
    ],
)
def test_a_command_line_that_cannot_be_meant_gives_2_and_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("oral: ") and message in line and len(line) < 400


def subcommands():
    [action] = [a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


@pytest.mark.parametrize("name", subcommands())
def test_every_help_has_an_example_that_parses_and_the_exit_codes(name):
    parser, root = subcommands()[name], cli.parser()
    example = parser.get_default("example")
    page = parser.format_help()
    assert f"example:\n  {root.prog} {example}\n" in page and cli.CODES in page
    assert root.parse_args(shlex.split(example)).command == name
    assert f"\n  {name} " in root.format_help() and cli.CODES in root.format_help()


def test_the_help_lists_the_commands_for_users_first():
    page = cli.parser().format_help()
    assert page.index("generate") < page.index("steps of the plan") < page.index("  zoo ")


def test_the_word_help_is_the_option_help(capsys):
    for words, page in (["help"], "commands for users"), (["help", "zoo"], "--seeds"):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0 and page in capsys.readouterr().out


@pytest.mark.parametrize("words", ["bases", "--help", "--version"])
def test_what_cannot_be_printed_is_one_line(words):
    command = [sys.executable, "-m", "oral_lib", words]
    where = {"env": {**os.environ, "PYTHONPATH": str(paths.ROOT)}, "stderr": subprocess.PIPE}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, text=True, **where)
    assert done.returncode == 3
    assert done.stderr == "oral: No space left on device: free some space, or use another folder.\n"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **where) as process:
        process.stdout.close()  # of `| true`
        assert process.stderr.read() == "" and process.wait() == 0


def test_the_version_is_that_of_the_project(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    project = (paths.ROOT / "pyproject.toml").read_text()
    version = capsys.readouterr().out.removeprefix("oral ").strip()
    assert ended.value.code == 0 and f'version = "{version}"' in project


def test_the_created_environment_has_the_command_oral(tmp_path):
    import venv

    from oral_lib.runner import environment

    folder = tmp_path / "it's an env"
    venv.create(folder)
    environment._add_project(folder)
    words = [folder / "bin" / "oral", "bases", "--out", str(tmp_path)]
    where = {"cwd": tmp_path, "env": {"PATH": os.environ["PATH"]}}
    done = subprocess.run([words[0], "--version"], capture_output=True, text=True, **where)
    assert (done.returncode, done.stdout[:5]) == (0, "oral "), done.stderr
    done = subprocess.run([words[0], "bass"], capture_output=True, text=True, **where)
    assert done.returncode == 2 and done.stderr.endswith("See oral --help.\n")
    assert 'oral = "oral_lib.workflow.cli:main"' in (paths.ROOT / "pyproject.toml").read_text()


def test_a_path_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parsing.path("~/x") == tmp_path / "x"
    assert parsing.path("x y") == Path("x y")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OralError("it broke"), 1, "oral: it broke"),
        (UsageError("no such thing"), 2, "oral: no such thing"),
        (PreflightError("no space"), 3, "oral: no space"),
        (KeyboardInterrupt(), 130, "oral: interrupted"),
        (
            MemoryError(),
            3,
            "oral: out of memory: close other programs, or use a machine with more memory.",
        ),
        (
            OSError(errno.ENOSPC, "No space left", "a"),
            3,
            "oral: a: No space left: free some space, or use another folder.",
        ),
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
    assert cli.main([*check, "--folder", str(tmp_path / "none")]) == 2


def test_help_of_the_module_states_the_exit_codes_without_any_package():
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    words = [sys.executable, "-S", "-m", "oral_lib", "--help"]  # -S: no site-packages
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and cli.CODES in done.stdout
