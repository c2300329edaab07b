"""A disk that is full, broken or read-only: one line, and no half file under its name."""

import errno
import json
import os
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from oral_lib import paths, storage
from oral_lib.errors import OralError, PreflightError
from oral_lib.runner import lock, worker
from oral_lib.workflow import cli, notebooks
from tests.faults import fake

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(folder, [at the end, name, kind of error, message]) of a writer of each kind of file."""
    compiler = shutil.which("cc")
    if not compiler or sys.platform != "linux":
        pytest.skip("needs a C compiler, on Linux")
    place = tmp_path_factory.mktemp("disk")
    library, folder = place / "full.so", place / "out"
    command = [compiler, "-shared", "-fPIC", "-o", library, HERE / "full_disk.c", "-ldl"]
    subprocess.run(command, check=True)
    folder.mkdir()
    path = os.pathsep.join([str(paths.ROOT), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.faults.writers", str(folder)],
        env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return folder, json.loads(done.stdout)


def test_every_kind_of_file_says_that_the_disk_is_full(outcomes):
    folder, tried = outcomes
    assert len(tried) == 15
    for at_end, name, kind, message in tried:
        assert kind == "PreflightError", name
        assert "\n" not in message and str(folder) in message
        if at_end:
            assert "cannot be written (Input/output error): check the disk" in message
        else:
            assert "No space left" in message


def test_no_half_file_is_left_under_its_name_or_another(outcomes):
    folder, _ = outcomes
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    # figures of the kinds before, which were written whole; the notebook that began
    whole = {"svg/figure.png"}
    assert files <= whole | {".quick.running.ipynb"}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EDQUOT, "No space left"),
        (errno.EROFS, "Read-only file system): use a folder on another disk"),
        (errno.EACCES, "Permission denied): make its folder writable"),
        (errno.EMFILE, "Too many open files): allow more open files"),
        (errno.EIO, "Input/output error): check the disk"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_a_remedy(
    tmp_path, monkeypatch, refused, number, words
):
    path = tmp_path / "file.json"
    storage.write_json(path, "before")

    def fails(file, *_):
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(Path, "write_bytes", fails)
    with refused(PreflightError, str(tmp_path), "file.json", words):
        storage.write_json(path, "after")
    assert storage.read_json(path) == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_path_that_is_too_long_is_one_line(tmp_path, refused):
    path = Path(tmp_path, *["x" * 200] * 20, "file.json")
    with refused(PreflightError, "File name too long): use a folder with a shorter path"):
        storage.write_json(path, 1)
    with refused(PreflightError, "File name too long"), lock.hold(tmp_path / ("x" * 300)):
        pass


def test_a_folder_where_a_file_belongs_is_kept_and_named(tmp_path, refused):
    (tmp_path / "file.json" / "mine").mkdir(parents=True)
    with refused(PreflightError, "file.json", "a folder has this name: move it away"):
        storage.write_json(tmp_path / "file.json", 1)
    assert (tmp_path / "file.json" / "mine").is_dir()
    (tmp_path / "cell").write_text("mine")
    with (
        refused(PreflightError, "cell", "a file is in the place of a folder"),
        storage.replacing(tmp_path / "cell") as temporary,
    ):
        temporary.mkdir()
    with refused(PreflightError, "a file is in the place of a folder"):
        storage.write_json(tmp_path / "cell" / "deeper" / "file.json", 1)
    assert (tmp_path / "cell").read_text() == "mine"


def test_an_error_of_another_file_is_not_one_of_the_disk(tmp_path):
    with pytest.raises(PermissionError), storage.replacing(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")


def test_a_log_that_cannot_be_written_ends_and_its_node_goes_on(tmp_path, capfd):
    log = tmp_path / "logs" / "a.log"
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    assert worker.run_command("a", log, ["-c", "print(1); print(2)"]) == 0
    said = capfd.readouterr().out
    assert said.count("the log ends here (No space left on device)") == 1 and "2\n" in said
    (tmp_path / "file").touch()
    assert worker.run_command("a", tmp_path / "file" / "a.log", ["-c", "print(1)"]) == 0
    assert "there is no log" in capfd.readouterr().out


PYTEST = ("locked", "popen-", "pytest-")  # names of the folders that pytest makes


def as_nobody(code: str, *words: str) -> subprocess.CompletedProcess:
    """`code` in a Python without the rights of root, where this one has them."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *words],
        env=os.environ | {"PYTHONPATH": str(paths.ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        user=65534 if os.geteuid() == 0 else None,
    )


def test_a_folder_without_permission_gives_3_in_one_line(tmp_path_factory):
    locked = tmp_path_factory.mktemp("locked")
    for folder in takewhile(lambda one: one.name.startswith(PYTEST), (locked, *locked.parents)):
        folder.chmod(0o755)  # another user may enter it
    (locked / "inside").mkdir(mode=0o555)
    code = "import sys\nfrom tests.faults import fake\nsys.exit(fake.main(sys.argv[1:]))"
    done = as_nobody(code, "--out", str(locked / "inside"))
    if "ModuleNotFoundError" in done.stderr or "No such file" in done.stderr:
        pytest.skip("another user cannot read this Python")
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("oral: ") and len(done.stderr.splitlines()) == 1
    assert "cannot be written (Permission denied): name another folder with --out" in done.stderr


def test_too_many_open_files_give_3_in_one_line(tmp_path):
    code = (
        "import resource, sys\nfrom oral_lib.workflow import cli, notebooks\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))\n"
        "kept = [open('/dev/null') for _ in range(10)]\n"
        "def fails(args):\n    more = [open('/dev/null') for _ in range(10)]\n"
        "notebooks.write_twins = fails\nsys.exit(cli.main(['twins']))"
    )
    where = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(paths.ROOT)}}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **where)
    assert done.returncode == 3, done.stderr
    assert "Too many open files: allow more open files, such as with ulimit -n 4096" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys, tmp_path):
    def fails(folder):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebooks, "write_twins", fails)
    assert cli.main(["twins"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("oral: out of memory") and len(said.splitlines()) == 1
    assert "close other programs" in said and list(tmp_path.iterdir()) == []


def test_a_node_without_memory_fails_alone_and_the_next_run_resumes(tmp_path, capfd):
    (tmp_path / "b.does").write_text("os.kill(os.getpid(), 9)")
    (tmp_path / "c.does").write_text(
        "from oral_lib.errors import memory_fault\n"
        "try: x = 'x' * 2**62\n"
        "except MemoryError as error: sys.exit(f'oral: {memory_fault(error)}')"
    )
    assert fake.main(["--out", str(tmp_path)]) == 1
    said = capfd.readouterr().out
    assert "FAILED b: it was killed, probably because memory ran out" in said
    assert "FAILED c: it ended with exit code 1" in said and "oral: out of memory" in said
    for name in "bc":
        (tmp_path / f"{name}.does").unlink()
    assert fake.main(["--out", str(tmp_path)]) == 0
    ran = (tmp_path / "logs" / "ran.txt").read_text().split()
    assert sorted(ran) == ["a", "b", "b", "c", "c", "d", "last"]


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()

    def refuses(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuses)
    with pytest.raises(OralError, match=r"file cannot be read \(Permission denied\)"):
        storage.sha256(path)
