"""State on disk: safetensors and JSON, written atomically and validated when read.

torch is imported by the functions that use tensors, so that the command line starts without it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oral_lib.errors import OralError, PreflightError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

NAME_LIMIT = 120  # bytes; a temporary file adds a suffix
_FULL = {errno.ENOSPC, errno.EDQUOT}
_WRITE_REMEDIES = {
    errno.EACCES: "make its folder writable, or use another folder",
    errno.EPERM: "make its folder writable, or use another folder",
    errno.EROFS: "use a folder on another disk",
    errno.EIO: "check the disk, or use a folder on another one",
    errno.EMFILE: "allow more open files, such as with ulimit -n 4096",
    errno.ENFILE: "close other programs: the machine has too many open files",
    errno.ENAMETOOLONG: "use a folder with a shorter path",
    errno.EISDIR: "a folder has this name: move it away",
    errno.ENOTDIR: "a file is in the place of a folder: move it away",
    errno.EEXIST: "a file is in the place of a folder: move it away",
}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # a file system without


@contextmanager
def replacing(path: str | Path, size: int = 0) -> Iterator[Path]:
    """A temporary path next to `path`, for a file or a folder that replaces `path` at the end.

    `path` is unchanged if the block raises or the process is killed.

    Args:
        path: the file or folder to write.
        size: bytes to write, for the message when the disk is full.

    Raises:
        PreflightError: if the disk is full, or the system refuses to write for another reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        if path.is_dir() and not temporary.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.is_dir():  # os.replace refuses a folder that is not empty: move the old one away
            old = temporary.with_suffix(".old.tmp")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except Exception as error:
        if refusal := write_refusal(error, path, size):
            raise refusal from error
        raise
    finally:
        with suppress(OSError):  # the path is too long, or the disk has failed
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def write_refusal(error: Exception, path: Path, size: int = 0) -> PreflightError | None:
    """Why the system refused to write `path`, in one line with what to do; None for other errors.

    `size` is the number of bytes to write.
    """
    number = getattr(error, "errno", None)
    # safetensors has the system's error number in its message only
    if number is None and (code := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(code[1])
    file = str(getattr(error, "filename", None) or path)
    if not file.startswith(str(path.parent)):  # of another file, such as one that was read
        return None
    if number in _FULL:
        return PreflightError(
            f"No space left in {path.parent} to write {path.name} ({size:,} bytes). "
            "Free some space or use another folder."
        )
    if number in _WRITE_REMEDIES:
        return PreflightError(
            f"{path} cannot be written ({os.strerror(number)}): {_WRITE_REMEDIES[number]}."
        )
    return None


def system_refusal(error: Exception) -> PreflightError | None:
    """What the system refused, in one line with what to do; None for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        remedy = "free some space, or use another folder"
    elif number in _WRITE_REMEDIES:
        remedy = _WRITE_REMEDIES[number]
    else:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return PreflightError(f"{place}{error.strerror}: {remedy}.")


def _flush(path: Path) -> None:
    """Waits until a file, or every file of a folder, is on the disk.

    A disk that is full or broken may say so only now.
    """
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                    raise
            finally:
                os.close(descriptor)


@contextmanager
def file_lock(path: str | Path, waiting: str = "") -> Iterator[None]:
    """Holds the lock file `path`; waits for the process that has it.

    On a file system without locks it goes on without: only one run may then work there.

    Args:
        path: the lock file.
        waiting: a line to print if another process has the lock.

    Raises:
        PreflightError: the lock file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting:
                print(waiting, file=sys.stderr)
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise PreflightError(
                f"{path} cannot be written ({error.strerror}): make its folder writable, or name "
                "another one (--out; for models and data ORAL_CACHE)."
            ) from error
    try:
        yield
    finally:
        lock.release()


def read_tensors(path: str | Path, *, finite: bool = True) -> dict[str, "Tensor"]:
    """Tensors of a safetensors file by name, on the CPU. No content of the file is executed.

    Raises:
        OralError: if the file is missing, truncated or not safetensors, or contains NaN or
            infinite values although `finite` is set.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _existing_file(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise OralError(
            f"{path} is truncated or not a safetensors file ({_first_line(error)}). "
            "Create or download it again; pickled weights are never read."
        ) from error
    if finite:
        for name, tensor in tensors.items():
            if not _finite(tensor):
                raise OralError(
                    f"{path} has NaN or infinite values in {name!r}: create or download it again."
                )
    return tensors


def write_tensors(
    path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically. Raises PreflightError if the disk is full."""
    from safetensors.torch import save_file

    # safetensors refuses tensors that share memory, such as views of one flat vector: clone them
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in copies.values())
    with replacing(path, size) as temporary:
        save_file(copies, temporary, metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(0o644)  # safetensors writes private files


def read_json(path: str | Path) -> Any:
    """Content of a JSON file. Raises OralError if it is missing, truncated or invalid."""
    path = _existing_file(path)
    try:
        return json.loads(path.read_text("utf-8"), parse_constant=_no_constant)
    except (ValueError, OSError, RecursionError) as error:
        raise OralError(
            f"{path} is a truncated or invalid JSON file ({_first_line(error)}). "
            "Create or download it again."
        ) from error


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON with sorted keys, atomically. Raises OralError for NaN, which JSON lacks."""
    try:
        text = json.dumps(content, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise OralError(f"Cannot write {path} as JSON: {_first_line(error)}.") from error
    write_text(path, text + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file atomically. Raises PreflightError if the disk is full."""
    data = text.encode()
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


# what editors, systems and synchronisation leave next to a file under a similar name
_LITTER = re.compile(
    r"\..*|.*~|#.*#|~\$.*|.*\.(swp|swo|tmp|bak|orig|rej|part|crdownload)|thumbs\.db|desktop\.ini|"
    r"ehthumbs\.db|icon\r|__macosx|lost\+found|.*\.sync-conflict-.*|.*conflicted copy.*|"
    r".* \(\d+\)(\.\w+)?|.* - copy( \(\d+\))?(\.\w+)?|.* copy( \d+)?(\.\w+)?",
    re.IGNORECASE | re.DOTALL,
)


def list_paths(folder: str | Path, pattern: str = "*") -> list[Path]:
    """The paths in `folder` that fit the glob pattern, sorted, without hidden files and without
    what editors and systems leave (`._a.csv`, `a.csv~`, `a (1).csv`)."""
    folder = Path(folder)
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(map(_LITTER.fullmatch, path.relative_to(folder).parts))
    )


def safe_name(name: str) -> str:
    """`name` if it is a valid file name inside a folder. Raises UsageError if not."""
    fault = None
    if not isinstance(name, str) or not name.strip():
        fault = "is empty or not a text"
    elif any(unicodedata.category(letter).startswith("C") for letter in name):
        fault = "contains invisible or control characters"
    elif "/" in name or "\\" in name or ".." in name or name.startswith("."):
        fault = "looks like a path"
    elif len(name.encode()) > NAME_LIMIT:
        fault = f"is longer than {NAME_LIMIT} bytes"
    if fault:
        raise UsageError(
            f"The name {str(name)[:NAME_LIMIT]!r} {fault}. "
            "Use letters, digits, '-', '_' and single dots."
        )
    return name


def sha256(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal. Raises OralError if it is missing or cannot be read."""
    try:
        with _existing_file(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OralError(f"{path} cannot be read ({error.strerror}).") from error


def _existing_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise OralError(
            f"{path} is a folder, not a file." if path.is_dir() else f"{path} does not exist."
        )
    return path


def _finite(tensor: "Tensor") -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # isfinite does not support 8-bit floats
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
