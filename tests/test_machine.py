"""Cores, memory and GPUs are those that this process may use, whatever the container says."""

import errno
import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oral_lib import machine, paths, provenance, scales, storage
from oral_lib.errors import PreflightError
from oral_lib.runner import doctor, environment, lock
from oral_lib.workflow import cli, options

# --- cores and memory ----------------------------------------------------------------------------


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A function that sets what /proc/self/cgroup and the files of control groups say."""
    usual = Path.read_text

    def read(path, *given, **more):
        if str(path) == "/proc/self/cgroup":
            return usual(tmp_path / "cgroup")
        return usual(path, *given, **more)

    def write(groups: str, **files: str) -> None:
        (tmp_path / "cgroup").write_text(groups)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    return write


V1 = "12:memory:/job\n4:cpu,cpuacct:/job/step\n1:name=systemd:/job\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # half a core
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/of/the/host\n", {"cpu.max": "200000 100000"}, 2),  # the path is not in the container
        ("0::/../above\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/u\n", {"unified/u/cpu.max": "200000 100000"}, 2),
        (V1, {"cpu,cpuacct/job/cpu.cfs_quota_us": "400000\n",
              "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"}, 4),
        (V1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("", {}, 8),
    ],
)  # fmt: skip
def test_the_cores_are_those_of_the_quota(container, eight_cores, groups, files, cores):
    container(groups, **files)
    assert machine.cores() == cores


def test_torch_gets_the_threads_of_the_quota_unless_the_user_chose(
    container, eight_cores, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    container("0::/\n", **{"cpu.max": "150000 100000\n"})
    machine.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    container("0::/\n", **{"cpu.max": "max 100000\n"})
    machine.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    container("0::/\n", **{"cpu.max": "150000 100000\n"})
    machine.limit_threads()
    assert os.environ.pop("OMP_NUM_THREADS") == "1"


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/a\n", {"memory.max": "max", "memory.current": "9", "a/memory.max": "2097152",
                     "a/memory.current": "1048576"}),
        (V1, {"memory/job/memory.limit_in_bytes": "2097152",
              "memory/job/memory.usage_in_bytes": "1048576",
              "memory/memory.limit_in_bytes": "9223372036854771712"}),
    ],
)  # fmt: skip
def test_the_memory_is_that_of_the_container(container, groups, files):
    container(groups, **files)
    assert machine.memory_mb() == (2, 1)


# --- GPUs ----------------------------------------------------------------------------------------

TWO = "0, GPU-aa, 81559, 100, NVIDIA H100 80GB HBM3\n1, GPU-bb, 15360, 15000, Tesla T4\n"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A function that puts an nvidia-smi of these shell commands first on the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine._nvidia_smi.cache_clear()

    def write(script: str, mode: int = 0o755) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)
        machine._nvidia_smi.cache_clear()

    yield write
    machine._nvidia_smi.cache_clear()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'NVIDIA-SMI has failed: no driver' >&2; exit 9", "exit code 9: NVIDIA-SMI has"),
        ("exit 0", "nvidia-smi lists no GPU"),
        ("echo 'No devices were found'", "nvidia-smi lists no GPU"),
        ("printf '\\377\\376'; exit 255", "exit code 255"),
        ("kill -9 $$", "exit code -9"),
    ],
)
def test_an_nvidia_smi_without_a_gpu_means_the_scale_without_one(nvidia_smi, script, words):
    nvidia_smi(script)
    scale, reason = scales.machine_scale()
    assert scale == scales.default_scale() == "desk" and words in reason
    assert machine.gpus() == []


def test_an_nvidia_smi_that_hangs_is_left_behind(nvidia_smi, monkeypatch):
    monkeypatch.setattr(machine, "SMI_SECONDS", 0.5)
    nvidia_smi("trap '' TERM; sleep 30 & sleep 30")
    began = time.monotonic()
    assert scales.machine_scale() == ("desk", "nvidia-smi did not answer in 0 s")
    assert time.monotonic() - began < 5


def test_without_nvidia_smi_or_with_a_broken_one_there_is_no_gpu(nvidia_smi, monkeypatch, tmp_path):
    nvidia_smi("", mode=0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "does not start" in machine.gpu_fault()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    machine._nvidia_smi.cache_clear()
    assert machine.gpu_fault() == "there is no nvidia-smi"


@pytest.mark.parametrize(
    ("chosen", "names", "scale"),
    [
        (None, ["NVIDIA H100 80GB HBM3", "Tesla T4"], "lab"),
        ("1", ["Tesla T4"], "desk"),
        ("GPU-b", ["Tesla T4"], "desk"),
        ("1, 0", ["Tesla T4", "NVIDIA H100 80GB HBM3"], "lab"),
        ("", [], "desk"),
        ("-1", [], "desk"),
        ("7,0", [], "desk"),  # CUDA stops at the first that does not exist
        ("MIG-1234", ["a MIG instance"], "desk"),
    ],
)
def test_only_gpus_that_cuda_may_see_count(nvidia_smi, monkeypatch, chosen, names, scale):
    nvidia_smi(f"printf '{TWO}'")
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert [gpu.name for gpu in machine.gpus()] == names
    assert scales.default_scale() == scale
    assert bool(machine.gpu_fault()) == (not names)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ("0, GPU-a, 40960, 1, A100", ("lab", "A100 has 40 GiB")),
        ("0, GPU-a, 24564, 1, RTX 4090", ("desk", "RTX 4090 has 24 GiB, less than 38 GiB")),
        ("0, GPU-a, [N/A], [N/A], GB10", ("desk", "GB10 does not say how much memory it has")),
    ],
)
def test_lab_is_chosen_only_where_the_gpu_is_large_enough(nvidia_smi, row, answer):
    nvidia_smi(f"echo '{row}'")
    assert scales.machine_scale() == answer


# --- locks and homes -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_work_goes_on_and_a_run_says_so(
    tmp_path, monkeypatch, capsys, number
):
    def flock(*given):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.hold(tmp_path):
        pass
    [line] = capsys.readouterr().err.splitlines()
    assert "without locks" in line and "one run at a time" in line
    with storage.file_lock(tmp_path / "a.lock"):
        pass


def test_a_lock_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    wanted = pytest.raises(PreflightError, match="cannot be written")
    with wanted, storage.file_lock(tmp_path / "file" / "a.lock"):
        pass


def test_one_process_waits_for_the_lock_of_another_and_says_so(tmp_path, capsys):
    script = "import sys, time; from oral_lib import storage\n"
    script += f"with storage.file_lock({str(tmp_path / 'a.lock')!r}):\n"
    script += "    print('locked', flush=True); time.sleep(0.5)"
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    other = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    with storage.file_lock(tmp_path / "a.lock", "waiting for the other"):
        assert other.wait() == 0
    assert capsys.readouterr().err == "waiting for the other\n"


def without_a_name(monkeypatch) -> None:
    """The user has neither a name nor a home folder, as `docker run --user` gives."""

    def nobody(*given):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "ORAL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_home_folder_a_path_in_it_is_refused(monkeypatch):
    without_a_name(monkeypatch)
    with pytest.raises(PreflightError, match=r"Set HOME to a folder .* ORAL_CACHE is enough"):
        paths.full("~/.cache")
    with pytest.raises(PreflightError, match="no home folder"):
        paths.full("~no-such-user/x")
    assert paths.full("/a") == Path("/a")


def test_a_user_without_a_name_gets_one_for_libraries_that_look_it_up(monkeypatch):
    without_a_name(monkeypatch)
    monkeypatch.setenv("MPLBACKEND", "")  # so that it is set back
    monkeypatch.setenv("MATPLOTLIBRC", "")
    monkeypatch.setattr(options, "_open_streams", lambda: None)
    assert options.start(["a"]) == ["a"]
    assert os.environ.pop("LOGNAME") == f"user-{os.getuid()}"


@pytest.mark.parametrize("home", ["/proc/none", None])
def test_other_programs_get_a_home_where_the_user_s_cannot_be_written(home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "usual"))
    assert environment.home_variables(tmp_path / "other") == {}
    without_a_name(monkeypatch)
    if home:
        monkeypatch.setenv("HOME", home)
    variables = environment.home_variables(tmp_path / "other")
    assert variables.pop("HOME") == str(tmp_path / "other") and (tmp_path / "other").is_dir()
    # the cache is where it would be, so that its own message says that it cannot be written
    assert variables == ({"ORAL_CACHE": "/proc/none/.cache/oral"} if home else {})


def test_a_notebook_runs_without_a_home(tmp_path):
    (tmp_path / "one.py").write_text("# %%\nprint('it runs')\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef nobody(*_): raise KeyError('uid')\npwd.getpwuid = nobody\n"
    )
    assert cli.main(["twins", "--folder", str(tmp_path)]) == 0
    kept = {key: text for key, text in os.environ.items() if key not in ("HOME", "LOGNAME", "USER")}
    words = ["notebook", str(tmp_path / "one.ipynb"), str(tmp_path / "ran.ipynb")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "oral_lib", *words],
        env=kept | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(paths.ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "it runs" in done.stdout, done.stderr
    assert not (tmp_path / "~").exists()


def test_a_path_that_is_not_utf_8_is_refused(tmp_path, monkeypatch):
    with pytest.raises(PreflightError, match=r"b'/a/caf\\xe9' is not UTF-8: rename or move"):
        paths.full(os.fsdecode(b"/a/caf\xe9"))
    monkeypatch.setattr(paths, "ROOT", Path(os.fsdecode(b"/a/caf\xe9")))
    with pytest.raises(PreflightError, match="is not UTF-8"):
        options.start([])


# --- the commit ----------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """(a folder that provenance takes for its own, a function that runs git there)."""
    folder = tmp_path / "checkout"
    (folder / "oral_lib").mkdir(parents=True)
    shutil.copy(provenance.__file__, folder / "oral_lib")
    monkeypatch.setattr(provenance, "__file__", str(folder / "oral_lib" / "provenance.py"))
    monkeypatch.delenv("ORAL_COMMIT", raising=False)

    def git(*words: str) -> str:
        me = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", *me, *words]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    return folder, git


def commit(git) -> str:
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    return git("rev-parse", "HEAD").strip()


def test_without_a_repository_or_git_the_remedy_is_said_and_oral_commit_is_taken(
    checkout, monkeypatch
):
    remedy = "clone the repository, or set ORAL_COMMIT to the commit"
    assert provenance.commit_and_fault() == ("unknown", remedy)
    assert doctor.commit().remedy == remedy
    monkeypatch.setenv("PATH", "")
    assert provenance.commit_and_fault()[1].startswith("install git, or set ORAL_COMMIT")
    monkeypatch.setenv("ORAL_COMMIT", "0123abc")
    assert provenance.commit_and_fault() == ("0123abc", "")
    assert doctor.commit().state == "ok"
    monkeypatch.setenv("ORAL_COMMIT", "")
    assert provenance.code_commit() == "unknown"


def test_a_clone_of_another_owner_says_which_git_setting_helps(checkout, monkeypatch):
    folder, git = checkout
    commit(git)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    check = doctor.commit()
    assert (check.state, check.what) == ("warn", "git")
    assert check.remedy.startswith(
        f"git config --global --add safe.directory {folder}, or set ORAL"
    )


def test_the_commit_is_that_of_this_code_whatever_git_is_told_elsewhere(
    checkout, monkeypatch, tmp_path
):
    folder, git = checkout
    name = commit(git)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "another" / "index"))
    assert provenance.code_commit() == name
    (folder / "oral_lib" / "provenance.py").chmod(0o755)  # a file system without modes
    assert provenance.code_commit() == name
    with (folder / "oral_lib" / "provenance.py").open("a") as file:
        file.write("# changed\n")
    assert provenance.code_commit() == f"{name}-dirty"


@pytest.mark.parametrize("how", [["clone", "-q", "--depth", "1"], ["worktree", "add", "-q"]])
def test_shallow_clones_and_worktrees_have_their_commit(checkout, monkeypatch, tmp_path, how):
    folder, git = checkout
    name = commit(git)
    origin = [f"file://{folder}"] if how[0] == "clone" else []
    git(*how, *origin, str(tmp_path / "other"))
    file = tmp_path / "other" / "oral_lib" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.code_commit() == name


# --- what doctor says ---------------------------------------------------------------------------


def checks(*arguments) -> dict[str, doctor.Check]:
    return {check.what: check for check in doctor.folders(*arguments)}


def test_doctor_names_folders_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert {check.state for check in checks(tmp_path).values()} == {"ok"}
    monkeypatch.setenv("HOME", "/proc/none")
    home = checks(tmp_path)["home"]
    assert home.state == "warn" and "/proc/none cannot be written" in home.finding
    assert "ORAL_CACHE" in home.remedy
    assert checks(Path("/proc/none"))["results"].state == "fail"
    monkeypatch.setenv("TMPDIR", "/proc/none")
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: "/tmp")
    temporary = checks(tmp_path)["temporary"]
    assert temporary.state == "warn" and "TMPDIR=/proc/none" in temporary.finding
    without_a_name(monkeypatch)
    assert checks(tmp_path)["home"].finding == "no home folder"


def test_doctor_names_what_is_not_as_usual(
    tmp_path, monkeypatch, nvidia_smi, container, eight_cores
):
    nvidia_smi("echo broken; exit 3")
    assert doctor.gpu().finding == "none: nvidia-smi failed (exit code 3: broken)"
    nvidia_smi(f"printf '{TWO}'")
    assert doctor.gpu().finding == "NVIDIA H100 80GB HBM3 (80 GiB), Tesla T4 (15 GiB)"
    container("0::/\n", **{"cpu.max": "50000 100000\n"})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert doctor.processor().finding == "1 of 8: the CPU set or quota of this process"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(paths.ROOT), "/opt/site"]))
    assert doctor.python_path() == doctor.Check(
        "PYTHONPATH", "warn", "/opt/site come first",
        "unset PYTHONPATH, unless the packages of the environment are there",
    )  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    assert doctor.python_path().state == "ok"
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert "without locks" in checks(tmp_path)["results"].finding


def no_locks(*given):
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_folder_of_environments_that_cannot_be_written_names_its_variable(monkeypatch):
    monkeypatch.setenv("ORAL_ENV", "/proc/none/env")
    monkeypatch.setattr(environment, "fits", lambda: False)
    with pytest.raises(PreflightError, match="use another disk with ORAL_ENV"):
        environment.prepare_environment()
    monkeypatch.setattr(doctor, "disk", lambda *given: doctor.Check("disk", "ok", ""))
    with pytest.raises(PreflightError, match="name another folder with ORAL_ENV"):
        environment.prepare_environment()
