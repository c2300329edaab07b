"""What this machine gives the process: cores, memory and GPUs. Standard library only."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
SMI_SECONDS = 10.0  # seconds for nvidia-smi, which hangs where the driver does
NO_TOOL = "there is no nvidia-smi"
QUERY = "--query-gpu=index,uuid,memory.total,memory.free,name"


class Gpu(NamedTuple):
    """One GPU as nvidia-smi describes it; memory in MiB, 0 where it does not say."""

    index: str
    uuid: str
    total_mb: int
    free_mb: int
    name: str


# ---------------------------------------------------------------- processor and memory
def cores() -> int:
    """The cores that this process may use: its CPU set and the quota of its container, at least 1.

    Half a core counts as one, two and a half as two.
    """
    count = _processors()
    for group in _control_groups("cpu"):
        limit = _numbers(group / "cpu.max")
        limit = limit or [
            *_numbers(group / "cpu.cfs_quota_us"),
            *_numbers(group / "cpu.cfs_period_us"),
        ]
        if len(limit) == 2 and limit[1]:  # without a quota there is one number
            count = min(count, limit[0] // limit[1])
    return max(1, count)


def _processors() -> int:
    """The processors in the CPU set of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads() -> None:
    """Sets OMP_NUM_THREADS for torch, imported later, where a container has a quota.

    Without a quota torch counts correctly by itself. A value of the user stays.
    """
    if cores() < _processors():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def memory_mb() -> tuple[int, int]:
    """(total, free) memory in MB, within the limit of the container if it has one."""
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    total = free = os.sysconf("SC_PHYS_PAGES") * page
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]) / 1024
    for group in _control_groups("memory"):
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            numbers = [*_numbers(group / limit), *_numbers(group / usage)]
            if len(numbers) == 2:  # without a limit there is one number
                total = min(total, numbers[0] / 2**20)
                free = min(free, (numbers[0] - numbers[1]) / 2**20)
    return int(total), max(0, int(free))


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders that may limit `controller` for this process, of cgroup versions 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        roots = (CGROUPS / names, CGROUPS / (controller if names else "unified"))
        # in a container the path may be the host's: then only the root exists
        inner = PurePosixPath(path.strip("/"))
        for root in roots:
            for part in (inner, *inner.parents) if ".." not in inner.parts else ():
                yield root / part
            yield root


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a file of the kernel; no limit ("max", -1) is not a number."""
    try:
        return [int(word) for word in file.read_text().split() if word.isdecimal()]
    except OSError:
        return []


# ---------------------------------------------------------------- GPUs
def gpus() -> list[Gpu]:
    """The GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves; see `gpu_fault`."""
    return _visible(_nvidia_smi()[0], os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_fault() -> str:
    """Why there is no GPU; empty if there is one."""
    listed, fault = _nvidia_smi()
    if fault or gpus():
        return fault
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES={chosen!r} selects none of the {len(listed)} GPUs"


def has_gpu(megabytes: int) -> tuple[bool, str]:
    """(whether a GPU has that much memory, the reason for people)."""
    gpu = max(gpus(), key=lambda gpu: gpu.total_mb, default=None)
    if gpu is None:
        return False, gpu_fault()
    if not gpu.total_mb:
        return False, f"{gpu.name} does not say how much memory it has"
    size, need = gpu.total_mb / 1024, megabytes / 1024
    if gpu.total_mb < megabytes:
        return False, f"{gpu.name} has {size:.0f} GiB, less than {need:.0f} GiB"
    return True, f"{gpu.name} has {size:.0f} GiB"


def _visible(listed: tuple[Gpu, ...], chosen: str | None) -> list[Gpu]:
    """The GPUs of a CUDA_VISIBLE_DEVICES: indices or UUIDs, up to the first that does not exist."""
    if chosen is None:
        return list(listed)
    visible: list[Gpu] = []
    for word in chosen.split(","):
        word = word.strip()
        if word.startswith("MIG-"):  # a part of a GPU, whose memory nvidia-smi does not list here
            visible.append(Gpu("", word, 0, 0, "a MIG instance"))
            continue
        matching = [gpu for gpu in listed if word == gpu.index or gpu.uuid.startswith(word)]
        if not word or not matching:
            break
        visible.append(matching[0])
    return visible


@cache
def _nvidia_smi() -> tuple[tuple[Gpu, ...], str]:
    """(GPUs, ""), or (none, the reason): the tool may be there without a driver or a GPU."""
    try:
        process = subprocess.Popen(
            ["nvidia-smi", QUERY, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        return (), NO_TOOL
    except OSError as error:
        return (), f"nvidia-smi does not start ({error.strerror})"
    try:
        output, _ = process.communicate(timeout=SMI_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()  # no wait: a process in a hanging driver ends never
        return (), f"nvidia-smi did not answer in {SMI_SECONDS:.0f} s"
    lines = output.strip().splitlines()
    if process.returncode != 0:
        words = f": {lines[-1].strip()}" if lines else ""
        return (), f"nvidia-smi failed (exit code {process.returncode}{words})"
    rows = [row for line in lines if len(row := line.split(", ", 4)) == 5 and row[0].isdecimal()]
    listed = tuple(Gpu(i, uuid, _mb(total), _mb(free), name) for i, uuid, total, free, name in rows)
    return listed, "" if listed else "nvidia-smi lists no GPU"


def _mb(text: str) -> int:
    """A number of MiB; 0 for "[N/A]", as of GPUs that share the memory of the machine."""
    return int(text) if text.isdecimal() else 0
