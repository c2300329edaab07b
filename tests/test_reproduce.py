"""./reproduce.sh keeps its promises: exit codes, resuming, one run at a time, nothing to do.

The nodes here are a few lines of Python whose behaviour files decide: `hold` makes node b wait,
`break` makes node bad fail.
"""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from oral_lib import machine, paths, provenance, storage
from oral_lib.errors import PreflightError
from oral_lib.runner import checks, doctor, engine, environment, lock, nodes, worker
from oral_lib.runner.nodes import Node
from oral_lib.workflow import cli, reproduce

NODE = """
import os, sys, time
from pathlib import Path
name, left, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
with open(out / "ran", "a") as file:
    file.write(f"{name} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n")
print("words of", name, flush=True)
while name == "b" and (out / "hold").exists():
    time.sleep(0.05)
if name == "bad" and (out / "break").exists():
    sys.exit("it is broken")
left.with_suffix(".part").write_text(name)
os.replace(left.with_suffix(".part"), left)
"""
STARTER = """
import signal, sys
from test_reproduce import planner, reproduce
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(reproduce.main(sys.argv[1:], planner=planner))
"""


def planner(scale: str, source: str, out: Path) -> list[Node]:
    """a -> b -> last, a -> bad -> last."""
    run = paths.run_folder(scale, source, out)

    def node(name: str, *inputs: str) -> Node:
        left = run / f"{name}.txt"
        command = ("-c", NODE, name, str(left), str(out))
        needs = tuple(str(run / f"{i}.txt") for i in inputs)
        return Node(name, (str(left),), command, inputs=needs, memory_mb=10, minutes=0.1)

    return [node("a"), node("b", "a"), node("bad", "a"), node("last", "b", "bad")]


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "a {b} c"  # a path with spaces, and braces that Snakemake could fill in
    folder.mkdir()
    return folder


def run(out: Path, *words: str) -> int:
    return reproduce.main(["--scale", "smoke", "--out", str(out), *words], planner=planner)


def ran(out: Path) -> list[str]:
    """The nodes that were started, in order."""
    return [line.split()[0] for line in (out / "ran").read_text().splitlines()]


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def holding(out):
    """A run in another process, with node b waiting; ended at the end whatever happens."""
    (out / "hold").touch()
    path = os.pathsep.join([str(paths.ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, "--scale", "smoke", "--out", str(out), "--jobs", "2"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: (out / "ran").exists() and "b" in ran(out))
    yield process
    (out / "hold").unlink(missing_ok=True)
    process.kill()
    process.communicate()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")  # an orphan whose new parent has not asked for it yet
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"


def pid_of(out: Path, name: str) -> int:
    return next(int(x.split()[1]) for x in (out / "ran").read_text().splitlines() if x[0] == name)


# --- running --------------------------------------------------------------------------------


def test_a_failed_node_gives_1_the_others_run_and_only_the_rest_runs_again(out, capfd):
    (out / "break").touch()
    assert run(out) == 1
    said = capfd.readouterr().out
    assert sorted(ran(out)) == ["a", "b", "bad"]
    assert "FAILED bad: it ended with exit code 1" in said and "it is broken" in said
    assert "not run, because they need a failed node: last" in said
    (out / "break").unlink()
    assert run(out) == 0
    assert ran(out)[3:] == ["bad", "last"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that went well, and what it said."""
    out, said = tmp_path_factory.mktemp("finished"), io.StringIO()
    with redirect_stdout(said):
        assert run(out) == 0
    return out, said.getvalue()


def test_a_run_shows_where_it_is_what_the_nodes_say_and_keeps_their_logs(finished):
    out, said = finished
    assert "node 1/4 a: started, elapsed " in said and "node 4/4 last: done in " in said
    assert "left" in said and "    words of b\n" in said
    logs = paths.run_folder("smoke", "made", out) / "logs"
    assert (logs / "b.log").read_text() == "words of b\n"
    assert "next: ./reproduce.sh" in said.splitlines()[-1]


@pytest.mark.parametrize(("jobs", "threads"), [("1", "6"), ("2", "3"), ("7", "1")])
def test_the_cores_are_shared_among_the_nodes_that_run_at_a_time(out, monkeypatch, jobs, threads):
    monkeypatch.setattr(machine, "cores", lambda: 6)
    assert run(out, "--only", "a", "--jobs", jobs) == 0
    assert (out / "ran").read_text().split()[2] == threads


def test_threads_that_wait_leave_shared_cores_to_others_unless_the_user_says_so(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    args = SimpleNamespace(scale="smoke", source="made", out=paths.ROOT, offline=True)
    assert reproduce._environment(args)["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert reproduce._environment(args)["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize(("jobs", "cards", "gpu"), [(1, 0, 0), (3, 1, 3), (1, 2, 2), (3, 2, 3)])
def test_nodes_share_a_gpu_where_more_run_at_a_time(tmp_path, monkeypatch, jobs, cards, gpu):
    monkeypatch.setattr(machine, "gpus", lambda: ["a GPU"] * cards)
    assert f"gpu={gpu}" in engine.command(tmp_path, jobs)


def test_a_snakemake_profile_of_the_user_changes_nothing(out, monkeypatch, tmp_path):
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text("dry-run: true\n")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(tmp_path / "profile"))
    assert run(out, "--only", "a") == 0
    assert ran(out) == ["a"]


def test_each_node_sees_a_gpu_of_its_own_as_long_as_there_are_some(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(worker, "_uuids", lambda: ["GPU-a", "GPU-b"])
    with worker.card() as one, worker.card() as two, worker.card() as three:
        seen = [chosen["CUDA_VISIBLE_DEVICES"] for chosen in (one, two, three)]
    assert seen == ["GPU-a", "GPU-b", "GPU-a"]
    with worker.card() as again:
        assert again["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with worker.card() as chosen:
        assert chosen == {}  # the user's own choice stands


def test_with_nothing_to_do_it_says_so_at_once_without_snakemake(finished, capfd, monkeypatch):
    done, _ = finished
    monkeypatch.setattr(engine, "run_nodes", None)
    began = time.monotonic()
    assert run(done) == 0
    assert time.monotonic() - began < 1
    assert "nothing to do: all 4 nodes are done" in capfd.readouterr().out


@pytest.mark.parametrize(("made_with", "told"), [("0123456789", True), ("fedcba9-dirty", False)])
def test_with_nothing_to_do_it_tells_of_results_of_another_commit(
    finished, made_with, told, capfd, monkeypatch
):
    done, _ = finished
    manifest = paths.results_folder("smoke", done) / "manifest.json"
    storage.write_json(manifest, {"made-vision": {"commit": made_with}, "hub": {"commit": "0"}})
    monkeypatch.setattr(provenance, "code_commit", lambda: "fedcba9")
    assert run(done) == 0
    manifest.unlink()
    words = "their results name commit 0123456, the code here is fedcba9: --from-scratch"
    assert (words in capfd.readouterr().out) == told


def test_it_ends_with_the_table_the_report_and_the_next_command(out, capfd):
    from made_results import made

    from oral_lib.evaluation import results

    metrics, items = made()
    results.collect([results.write_cell(out / "cell", metrics, items)], out / "results" / "lab")
    page = out / "results" / "lab" / "metrics.csv"
    done = Node("report", (str(page),), (), published=(str(page),))
    words = ["--scale", "lab", "--out", str(out)]
    assert reproduce.main(words, planner=lambda *given: [done]) == 0
    said = capfd.readouterr().out
    assert "minilm-l6" in said and "GENERATED" in said
    assert f"report: {out / 'results' / 'README.md'}" in said
    last = said.splitlines()[-1]
    assert "-m oral_lib generate --text" in last and "--save my-lora" in last
    words = shlex.split(last.removeprefix("next: "))
    args = cli.parser().parse_args(words[words.index("generate") :])
    assert (args.out, args.save) == (out, Path("my-lora"))


def test_only_runs_what_is_selected_and_what_it_needs_and_force_runs_it_again(out):
    assert run(out, "--only", "b*", "bad") == 0
    assert sorted(ran(out)) == ["a", "b", "bad"]
    assert run(out, "--only", "b", "--force") == 0
    assert ran(out)[3:] == ["b"]


def test_from_scratch_removes_the_run_folder_and_runs_everything(finished):
    done, _ = finished
    litter = paths.run_folder("smoke", "made", done) / "litter"
    litter.touch()
    assert run(done, "--from-scratch") == 0
    assert sorted(ran(done)) == sorted(2 * ["a", "b", "bad", "last"]) and not litter.exists()


def test_a_node_that_does_not_leave_what_it_promised_has_failed(out, capfd):
    lazy = Node("lazy", (str(paths.run_folder("smoke", "made", out) / "x"),), ("-c", "pass"))
    argv = ["--scale", "smoke", "--out", str(out)]
    # Snakemake waits for a file that is late on a shared disk; not for this test
    words = engine.command
    try:
        engine.command = lambda *given: [*words(*given), "--latency-wait", "0"]
        assert reproduce.main(argv, planner=lambda *given: [lazy]) == 1
    finally:
        engine.command = words
    assert "FAILED lazy: it did not write" in capfd.readouterr().out


# --- ends that nobody wished for ------------------------------------------------------------


def test_after_kill_9_no_node_lives_on_and_the_next_run_resumes(out, holding):
    node = pid_of(out, "b")
    holding.send_signal(signal.SIGKILL)
    holding.wait()
    until(lambda: gone(node))
    (out / "hold").unlink()
    assert run(out) == 0  # waits for what is left of the killed run
    again = ran(out)
    assert again.count("a") == 1 and again.count("b") == 2 and again[-1] == "last"


def test_a_second_run_is_refused_with_3_and_told_who_holds_the_lock(out, holding, capfd):
    began = time.monotonic()
    assert run(out) == 3
    assert f"process {holding.pid} on " in capfd.readouterr().err
    assert time.monotonic() - began < 5


def test_ctrl_c_gives_130_ends_the_nodes_and_leaves_no_half_result(out, holding):
    node = pid_of(out, "b")
    holding.send_signal(signal.SIGINT)
    said, _ = holding.communicate(timeout=20)
    assert holding.returncode == 130
    assert "Run the same command again to continue" in said
    assert gone(node)
    run_folder = paths.run_folder("smoke", "made", out)
    assert (run_folder / "a.txt").exists() and not (run_folder / "b.txt").exists()


def test_a_lock_is_free_again_when_its_holder_has_gone(tmp_path):
    with lock.hold(tmp_path):
        holder = json.loads((tmp_path / ".oral.lock").read_text())
        assert holder["pid"] == os.getpid()
        with pytest.raises(PreflightError, match=f"process {os.getpid()} on"), lock.hold(tmp_path):
            pass
    with lock.hold(tmp_path):
        pass


# --- refused before anything starts ---------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "labb"], "unknown scale 'labb'. Did you mean 'lab'?"),
        (["--source", "package"], "Did you mean 'packages'?"),
        (["--source", "made"], "belongs to --scale smoke"),
        (["--only", "lost"], "Did you mean 'last'?"),
        (["--jobs", "0"], "'0' is not a whole number from 1"),
        (["--sclae", "lab"], "Did you mean '--scale'?"),
        (["tset"], "unknown command 'tset'. Did you mean 'test'?"),
        (["doctor", "--jobs=2"], "--jobs belongs to `run`: `doctor` does not use it"),
        (["doctor", "--list"], "--list belongs to `run`"),
        (["--only", os.fsdecode(b"caf\xe9")], "the argument b'caf\\xe9' after '--only' is not"),
        (["run", "--", "-k", "x"], "only `test` passes arguments on"),
    ],
)
def test_what_cannot_be_meant_gives_2(words, message, tmp_path, capsys):
    try:
        code = reproduce.main(["--out", str(tmp_path), *words], planner=planner)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_is_nearly_full_gives_3(out, monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2.9e9))
    assert run(out) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert "disk 2.9 GB free for" in line and "free 3 GB, or use another disk with --out" in line


def test_a_node_larger_than_the_machine_gives_3(out, monkeypatch, capsys):
    monkeypatch.setattr(machine, "memory_mb", lambda: (5, 5))
    assert run(out) == 3
    assert "needs a machine with more memory" in capsys.readouterr().err


def test_the_paper_scale_gives_3_without_a_gpu_but_can_be_listed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machine, "gpus", lambda: [])
    words = ["--scale", "paper", "--source", "hub", "--out", str(tmp_path)]
    assert reproduce.main(words) == 3
    said = capsys.readouterr().err
    assert "need a CUDA GPU" in said and "--scale desk runs without" in said
    assert reproduce.main([*words, "--list"]) == reproduce.main([*words, "--dry-run"]) == 0
    assert "language/llama-3.1-8b/gsm8k/seed-2" in capsys.readouterr().out


def test_an_experiment_that_a_source_has_not_is_told_from_a_mistyped_node(capsys, tmp_path):
    words = ["--scale", "lab", "--source", "hub", "--out", str(tmp_path), "--list", "--only"]
    assert reproduce.main([*words, "multimodal*"]) == 2
    said = capsys.readouterr().err
    assert "no experiment 'multimodal' from source 'hub'" in said and "language, vision" in said
    assert reproduce.main([*words, "vison*"]) == 2
    assert "no node matches 'vison*'" in capsys.readouterr().err
    assert reproduce.main([*words, "vision/efficientnet-lite0/cifar10/*"]) == 0
    listed = capsys.readouterr().out
    assert "vision/zoo/efficientnet-lite0 " in listed and "minilm" not in listed


def test_offline_gives_3_and_names_what_is_missing(out, monkeypatch, capsys):
    from oral_lib.assets import sources

    monkeypatch.setattr(sources, "missing", lambda source, experiment: ["minilm-l6", "tweets"])
    prepare = Node("assets", (str(out / "assets.json"),), ("-c", "pass"))
    words = ["--out", str(out), "--offline"]
    assert reproduce.main(words, planner=lambda *given: [prepare]) == 3
    assert "minilm-l6, tweets" in capsys.readouterr().err


def test_two_local_folders_never_share_a_run(out, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    words = ["--scale", "lab", "--out", str(out), "--only", "a", "--source"]
    folder = paths.run_folder("lab", "local:x", out)
    nodes.write_plan(
        folder / "plan.json", planner("lab", "local:x", out), f"local:{tmp_path / 'one'}"
    )
    assert reproduce.main([*words, f"local:{tmp_path / 'two'}"], planner=planner) == 2
    assert "name another folder with --out" in capsys.readouterr().err
    assert reproduce.main([*words, "local:/no/such/folder"], planner=planner) == 3
    (folder / "plan.json").write_text('{"source": "lo')
    assert reproduce.main([*words, f"local:{tmp_path / 'two'}"], planner=planner) == 3
    assert "plan.json is damaged" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_gives_3(tmp_path, capsys):
    (tmp_path / "file").touch()
    words = ["--out", str(tmp_path / "file"), "--only", "a"]
    assert reproduce.main([*words, "--dry-run"], planner=planner) == 0
    capsys.readouterr()
    assert reproduce.main(words, planner=planner) == 3
    assert "name another folder with --out" in capsys.readouterr().err


# --- the shell script, set-up, test, doctor -------------------------------------------------


def test_every_option_names_the_commands_that_use_it(capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for option, commands in reproduce.USED_BY.items():
        assert re.search(rf" {option} .*?\[{', '.join(commands)}\]", said), option


@pytest.mark.parametrize("option", ["--out=x", "--scale=smoke", "--source=hub", "--from-scratch"])
def test_the_test_command_refuses_the_options_of_a_run(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(["test", option])
    assert f"{option.partition('=')[0]} belongs to `run`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "line"),
    [
        ([], "since there is no NVIDIA GPU of 40 GB or more; --scale lab overrides\n"),
        ([15_360], "of 40 GB or more (T4 has 15 GiB, less than 38 GiB); --scale lab overrides\n"),
        ([15_360, 81_559], "oral: scale lab, since T4 has 80 GiB\n"),
    ],
)
def test_the_scale_that_was_chosen_is_said_with_the_reason(gpus, line, monkeypatch, capsys, out):
    listed = [machine.Gpu("0", "GPU-a", size, size, "T4") for size in gpus]
    monkeypatch.setattr(machine, "gpus", lambda: listed)
    monkeypatch.setattr(machine, "gpu_fault", lambda: "there is no nvidia-smi")
    words = ["--out", str(out), "--list"]
    assert reproduce.main(words, planner=planner) == 0
    assert line in capsys.readouterr().err
    assert reproduce.main([*words, "--scale=desk"], planner=planner) == 0
    assert capsys.readouterr().err == ""  # who chooses is not told


def test_hours_are_printed_as_hours(out, capsys):
    long = Node("long", (str(out / "x"),), (), minutes=200.0)
    words = ["--scale", "smoke", "--out", str(out)]
    assert reproduce.main([*words, "--list"], planner=lambda *given: [long]) == 0
    assert "3 h 20 min" in capsys.readouterr().out
    assert reproduce.main([*words, "--dry-run"], planner=lambda *given: [long]) == 0
    assert "1 of 1 node would run, about 3 h 20 min one by one" in capsys.readouterr().out


def script(root: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    """reproduce.sh of `root`, called from elsewhere and without this environment's packages."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORAL_", "PYTHON"))}
    return subprocess.run(
        ["bash", str(root / "reproduce.sh"), *words],
        cwd="/",
        env=kept | more,
        capture_output=True,
        text=True,
    )


def test_the_script_answers_from_any_folder_in_a_path_with_spaces(tmp_path):
    root = tmp_path / "a path with spaces"
    shutil.copytree(paths.ROOT / "oral_lib", root / "oral_lib")
    shutil.copy(paths.ROOT / "reproduce.sh", root)
    listed = script(root, "--list", PYTHON=sys.executable)
    assert listed.returncode == 0 and "language/minilm-l6/movie" in listed.stdout
    planned = script(root, "--dry-run", "--scale", "smoke", PYTHON=sys.executable)
    assert planned.returncode == 0 and f"{root}/runs/smoke" in planned.stdout
    assert script(root, "--only", "x", PYTHON=sys.executable).returncode == 2


def test_the_script_states_its_exit_codes_and_refuses_another_python(tmp_path):
    told = script(paths.ROOT, "--help", PYTHON=sys.executable).stdout
    for words in ("0 all is done", "1 a node failed", "2 usage", "3 preflight", "130 interrupted"):
        assert words in told
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    refused = script(paths.ROOT, "--list", PYTHON=str(other))
    assert refused.returncode == 3 and f"PYTHON={other}" in refused.stderr


@pytest.mark.parametrize("name", ["a:b", "a\nb"])
def test_a_checkout_that_python_cannot_import_from_is_refused(tmp_path, name):
    root = tmp_path / name
    root.mkdir()
    shutil.copy(paths.ROOT / "reproduce.sh", root)
    refused = script(root, "--list", PYTHON=sys.executable)
    assert refused.returncode == 3 and "move" in refused.stderr
    assert "colon or a line break" in refused.stderr


def test_a_module_path_has_no_colon_of_the_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/a", str(paths.ROOT), "", "/b"]))
    assert paths.module_path() == os.pathsep.join([str(paths.ROOT), "/a", "/b"])
    monkeypatch.setattr(paths, "ROOT", Path("/a:b"))
    with pytest.raises(PreflightError, match="/a:b has a colon"):
        paths.module_path()


def test_the_script_starts_with_the_settings_of_another_python(tmp_path):
    (tmp_path / "sub").mkdir()
    started = script(
        paths.ROOT, "--list", "--scale", "smoke",
        PYTHON=sys.executable, PYTHONHOME=str(tmp_path), CDPATH=str(tmp_path),
        PYTHONSTARTUP=str(tmp_path / "none.py"), PYTHONIOENCODING="ascii", LC_ALL="C", COLUMNS="0",
    )  # fmt: skip
    assert started.returncode == 0 and "zoo/tiny-causal" in started.stdout, started.stderr


def test_a_clone_has_lf_line_ends_whatever_git_is_set_to(tmp_path):
    def git(*words: str) -> None:
        me = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.autocrlf=false"]
        subprocess.run(["git", *me, *words], cwd=tmp_path / "origin", check=True)

    (tmp_path / "origin").mkdir()
    for name in (".gitattributes", "reproduce.sh", "README.md", "oral_lib/tasks/movie.yaml"):
        (tmp_path / "origin" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.ROOT / name, tmp_path / "origin" / name)
    (tmp_path / "origin" / "a.png").write_bytes(b"\x89PNG\r\n\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    words = ["git", "-c", "core.autocrlf=true", "clone", "-q", "origin", "clone"]
    subprocess.run(words, cwd=tmp_path, check=True)
    for path in (tmp_path / "origin").rglob("*.*"):
        if ".git/" not in str(path) and path.is_file():
            clone = tmp_path / "clone" / path.relative_to(tmp_path / "origin")
            assert clone.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_ends_nothing(closed, tmp_path):
    command = f"{sys.executable} -P -m oral_lib.workflow.reproduce --scale smoke --list {closed}"
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, cwd=tmp_path)
    assert done.returncode == 0


def test_what_a_terminal_lacks_is_escaped(tmp_path):
    folder = tmp_path / "caf\u00e9"
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT), "PYTHONIOENCODING": "ascii"}
    words = ["--scale", "smoke", "--dry-run", "--out", str(folder)]
    command = [sys.executable, "-P", "-m", "oral_lib.workflow.reproduce", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "caf\\xe9" in done.stdout, done.stderr


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine whose Python fits no lock, with an empty lock to make an environment from."""
    locks = tmp_path / "env"
    locks.mkdir()
    (locks / "lock-cpu.txt").write_text("# nothing\n")
    monkeypatch.setattr(environment, "LOCKS", locks)
    monkeypatch.setattr(environment, "fits", lambda: False)
    monkeypatch.setattr(machine, "gpus", lambda: [])
    monkeypatch.setenv("ORAL_ENV", str(tmp_path / "of its own"))
    return tmp_path


def test_an_environment_is_made_once_and_sees_the_project_from_anywhere(bare, monkeypatch):
    python = environment.prepare_environment()
    assert python == str(bare / "of its own" / "bin" / "python")
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, "-P", "-c", "import oral_lib"], cwd="/", env=kept)
    assert done.returncode == 0
    monkeypatch.setattr(environment, "_create", None)
    assert environment.prepare_environment(offline=True) == environment.best() == python
    (bare / "env" / "lock-cpu.txt").write_text("# another lock\n")
    with pytest.raises(PreflightError, match="--offline forbids"):
        environment.prepare_environment(offline=True)


def wheel(folder: Path, version: str = "1.0") -> None:
    """Writes a package called small, without code that needs anything."""
    folder.mkdir(exist_ok=True)
    about, code = f"small-{version}.dist-info", f"version = {version!r}\n"
    with zipfile.ZipFile(folder / f"small-{version}-py3-none-any.whl", "w") as box:
        box.writestr("small/__init__.py", code)
        box.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: small\nVersion: {version}\n"
        )
        box.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        lines = [f"small/__init__.py,,{len(code)}", f"{about}/METADATA,,", f"{about}/WHEEL,,"]
        box.writestr(f"{about}/RECORD", "\n".join([*lines, f"{about}/RECORD,,"]))


@pytest.fixture
def small(bare, monkeypatch):
    """`bare` with a lock of one package, and a pip.conf that says where it is."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (bare / "env" / "lock-cpu.txt").write_text("small==1.0\n")
    wheel(bare / "wheels")
    (bare / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {bare / 'wheels'}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(bare / "pip.conf"))
    return bare


def installed(folder: Path) -> Path:
    [path] = folder.glob("of its own/lib/python3*/site-packages/small/__init__.py")
    return path


def test_no_setting_of_the_user_changes_what_pip_installs_but_where_from_is_kept(
    small, monkeypatch
):
    (small / "constraint.txt").write_text("small==2.0\n")
    elsewhere = str(small / "elsewhere")
    bad = {"target": elsewhere, "root": elsewhere, "prefix": elsewhere, "user": "1"}
    bad |= {"no-deps": "1", "dry-run": "1", "require-virtualenv": "1", "no-binary": ":all:"}
    bad |= {"constraint": str(small / "constraint.txt"), "python": "/no/such/python"}
    with (small / "pip.conf").open("a") as file:
        file.write("[install]\n" + "".join(f"{key} = {value}\n" for key, value in bad.items()))
    for key, value in bad.items():
        monkeypatch.setenv("PIP_" + key.upper().replace("-", "_"), value)
    # a package in PYTHONPATH that pip would take for installed
    with zipfile.ZipFile(small / "wheels" / "small-1.0-py3-none-any.whl") as box:
        box.extractall(small / "path")
    for name in ("PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.setenv(name, elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(small / "path"))
    monkeypatch.setenv("PYTHONNOUSERSITE", "")
    monkeypatch.setenv("PYTHONSTARTUP", str(small / "none.py"))
    before = os.umask(0o077)
    try:
        python = environment.prepare_environment()
    finally:
        os.umask(before)
    assert installed(small).is_file() and not (small / "elsewhere").exists()
    assert environment.is_marked(small / "of its own") and python == environment.best()


@pytest.mark.parametrize(
    "name", ["PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_CERT", "PIP_TRUSTED_HOST"]
)
def test_where_pip_downloads_from_is_the_user_s_choice(name, small, monkeypatch):
    monkeypatch.setenv(name, "of the user")
    monkeypatch.setenv("PIP_TARGET", "of the user")
    monkeypatch.setenv("HTTPS_PROXY", "of the user")
    with (small / "pip.conf").open("a") as file:
        file.write("proxy = p\nextra-index-url =\n    one\n    two\n[install]\ntimeout = 7\n")
    variables = environment._variables(sys.executable)
    expected = {"PIP_NO_INDEX": "true", "PIP_FIND_LINKS": str(small / "wheels"), "PIP_TIMEOUT": "7"}
    expected |= {name: "of the user", "PIP_PROXY": "p", "HTTPS_PROXY": "of the user"}
    expected |= {"PIP_CONFIG_FILE": os.devnull}
    assert {key: variables.get(key) for key in expected} == expected
    assert variables["PIP_EXTRA_INDEX_URL"].split() == ["one", "two"]
    assert "PIP_TARGET" not in variables


def test_a_pip_conf_that_cannot_be_read_gives_one_line(small):
    (small / "pip.conf").write_text("not a section\n")
    with pytest.raises(PreflightError, match="pip cannot read its configuration: "):
        environment._variables(sys.executable)


def test_an_environment_is_whole_only_when_its_own_python_finds_it_so(small, monkeypatch):
    usual = environment._variables
    target = {"PIP_TARGET": str(small / "elsewhere")}
    monkeypatch.setattr(environment, "_variables", lambda python: usual(python) | target)
    with pytest.raises(PreflightError, match=r"does not fit lock-cpu.txt: small 1.0 is not instal"):
        environment.prepare_environment()
    assert not environment.is_marked(small / "of its own")
    monkeypatch.setattr(environment, "_variables", usual)
    environment.prepare_environment()
    assert installed(small).is_file()


def test_an_environment_that_was_damaged_is_seen_and_mended(small, capfd):
    environment.prepare_environment()
    folder, locked = small / "of its own", small / "env" / "lock-cpu.txt"
    installed(small).write_text("")
    words = r"small 1.0 is damaged: small/__init__.py, 1 files in all\), and --offline"
    with pytest.raises(PreflightError, match=words):
        environment.prepare_environment(offline=True)
    shutil.rmtree(installed(small).parent)
    assert environment.fault(folder, locked).startswith("small 1.0 is damaged")
    (folder / "bin" / "python").write_text("not a program")
    assert environment.fault(folder, locked).startswith("its Python does not start")
    capfd.readouterr()
    environment.prepare_environment()
    assert f"{folder} is damaged (its Python does not start" in capfd.readouterr().err
    assert installed(small).read_text() == "version = '1.0'\n"
    assert environment.fault(folder, locked) == ""


@pytest.mark.parametrize("name", ["thesis.tex", "pyvenv.cfg"])
def test_a_folder_of_the_user_is_never_emptied(bare, name):
    folder = bare / "of its own"
    folder.mkdir()
    (folder / name).write_text("home = /usr/bin\n")
    with pytest.raises(PreflightError, match="is not an environment of this project"):
        environment.prepare_environment()
    assert (folder / name).read_text() == "home = /usr/bin\n"


def test_an_environment_cannot_be_in_a_path_with_a_colon(monkeypatch):
    monkeypatch.setenv("ORAL_ENV", "/a:b")
    with pytest.raises(PreflightError, match="ORAL_ENV=/a:b has a colon"):
        environment.home()


def test_a_python_that_fits_is_used_as_it_is(bare, monkeypatch):
    monkeypatch.setattr(environment, "fits", lambda: True)
    assert environment.prepare_environment(offline=True) == environment.best() == sys.executable


def test_the_test_command_runs_every_check_and_names_those_that_failed(monkeypatch, capfd):
    steps = [
        checks.Step("one", ("-c", "raise SystemExit(1)")),
        checks.Step(
            "two",
            (
                "-c",
                "import os; print('offline', os.environ['HF_HUB_OFFLINE'], "
                "os.environ.get('PYTEST_ADDOPTS'))",
            ),
        ),
    ]
    monkeypatch.setattr(checks, "steps", lambda extra, offline: steps)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    assert reproduce.main(["test"]) == 1
    said = capfd.readouterr().out
    assert "offline 1 None" in said and said.splitlines()[-1] == "FAILED: one"
    monkeypatch.setattr(checks, "steps", lambda extra, offline: steps[1:])
    assert reproduce.main(["test"]) == 0


def test_arguments_after_the_dashes_go_to_pytest(capsys):
    assert reproduce.main(["test", "--dry-run", "--", "-k", "words"]) == 0
    pytest_line = capsys.readouterr().out.splitlines()[-1]
    assert "-k words tests" in pytest_line
    one = str(Path(__file__))
    assert checks.steps([one])[-1].command[-1] == one


def test_doctor_tells_what_is_missing_and_what_to_do(out, monkeypatch, capsys):
    def broken():
        raise ImportError("no module named torch")

    for name in ("torch", "torchvision", "packages", "kernelspec", "commit"):
        monkeypatch.setattr(doctor, name, lambda: doctor.Check("other", "ok", "fine"))
    assert run(out, "doctor") == 0
    monkeypatch.setattr(doctor, "torch", broken)
    assert run(out, "doctor") == 3
    said = capsys.readouterr().out
    assert "fail  torch" in said and "-> run ./reproduce.sh test" in said


def test_workers_that_talk_at_once_never_mix_their_lines(tmp_path):
    long = "x" * 3000
    talk = f"for i in range(200): print({long!r}, flush=True)"
    ends, here = os.pipe()
    worker_line = [sys.executable, "-m", "oral_lib.runner.worker"]
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)} | {"PYTHONUNBUFFERED": "1"}
    processes = [
        subprocess.Popen(
            [*worker_line, name, str(tmp_path / name), "-c", talk],
            env=environment | {worker.EVENTS: "1"},
            stdin=subprocess.PIPE,
            stdout=here,
        )
        for name in ("one", "two")
    ]
    os.close(here)
    with open(ends) as pipe:
        lines = list(pipe)  # not splitlines, which also parts lines at the mark
    assert [process.wait() for process in processes] == [0, 0]
    events = [json.loads(line[1:]) for line in lines if line.startswith(worker.MARK)]
    assert sorted((e["node"], e["event"]) for e in events) == [
        *(("one", "end"), ("one", "start"), ("two", "end"), ("two", "start"))
    ]
    assert not any(worker.MARK in line[1:] for line in lines)
    assert (tmp_path / "one").read_text() == f"{long}\n" * 200


def test_a_worker_ends_its_node_and_all_it_started_when_its_parent_goes(tmp_path):
    inner = "import time; time.sleep(60)"
    script = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {inner!r}]);"
    script += "print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "oral_lib.runner.worker",
            "node",
            str(tmp_path / "log"),
            "-c",
            script,
        ],
        env={**os.environ, "PYTHONPATH": str(paths.ROOT), worker.EVENTS: "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert json.loads(process.stdout.readline()[1:]) == {"event": "start", "node": "node"}
    pid = int(process.stdout.readline())
    said, _ = process.communicate(timeout=10)
    assert json.loads(said.rstrip("\n").rpartition("\n")[2][1:])["event"] == "end"
    assert process.returncode != 0
    until(lambda: gone(pid))
