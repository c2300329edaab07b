"""Cores, memory and GPUs are those that this process may use, whatever the container says."""

import errno
import fcntl
import os
import sys
import time
from pathlib import Path

import pytest

from oral_lib import machine, paths, scales, storage
from oral_lib.errors import PreflightError
from oral_lib.runner import lock

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
    import subprocess

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


def test_without_a_home_folder_a_path_in_it_is_refused(monkeypatch):
    import pwd

    def nobody(*given):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    with pytest.raises(PreflightError, match=r"Set HOME to a folder .* ORAL_CACHE is enough"):
        paths.full("~/.cache")
    with pytest.raises(PreflightError, match="no home folder"):
        paths.full("~no-such-user/x")
    assert paths.full("/a") == Path("/a")
