"""State on disk: safetensors and JSON, written whole or not at all, read without trust.

Nothing here imports torch before a tensor is asked for, so that the command line can use it.
"""

import errno
import hashlib
import json
import os
import shutil
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oral_lib.errors import OralError, PreflightError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

NAME_LIMIT = 120  # bytes; leaves room for the suffix of a temporary file
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def replacing(path: str | Path, wanted: int = 0) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder at; it takes `path`'s place at the end.

    When the block raises, or the process dies, `path` stays as it was. `wanted` is the number of
    bytes to be written, told to the user when the disk is full (PreflightError).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():  # a folder cannot be replaced in one step: move the old one aside
            old = temporary.with_suffix(".old.tmp")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except Exception as error:
        # safetensors reports the system's error number in its text only
        if getattr(error, "errno", None) in _FULL or "os error 28" in str(error):
            raise PreflightError(
                f"No space left in {path.parent} to write {path.name} ({wanted:,} bytes wanted). "
                "Free some space or name another folder."
            ) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def read_tensors(path: str | Path, *, finite: bool = True) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file by name, on the CPU.

    OralError in one line when the file is missing, cut off, not safetensors (nothing in it is
    ever executed) or, with `finite`, when it holds NaN or infinite values.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _present(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise OralError(
            f"{path} is no whole safetensors file ({_first_line(error)}). "
            "Make or download it again; pickled weights are never read."
        ) from error
    if finite:
        for name, tensor in tensors.items():
            if not _finite(tensor):
                raise OralError(f"{path} holds NaN or infinite values in {name!r}: do not use it.")
    return tensors


def write_tensors(
    path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whole or not at all. PreflightError when the disk is full."""
    from safetensors.torch import save_file

    # clones: views of one flat vector must not be taken for tied weights
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    wanted = sum(tensor.nbytes for tensor in plain.values())
    with replacing(path, wanted) as temporary:
        save_file(plain, temporary, metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(0o644)  # safetensors makes private files


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. OralError in one line when it is missing, cut off or no JSON."""
    path = _present(path)
    try:
        return json.loads(path.read_text("utf-8"), parse_constant=_no_constant)
    except (ValueError, OSError, RecursionError) as error:
        raise OralError(
            f"{path} is no whole JSON file ({_first_line(error)}). Make or download it again."
        ) from error


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all. OralError for NaN: JSON has none."""
    try:
        text = json.dumps(content, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise OralError(f"Cannot write {path} as JSON: {_first_line(error)}.") from error
    write_text(path, text + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all. PreflightError when the disk is full."""
    data = text.encode()
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


def safe_name(name: str) -> str:
    """`name` itself when it can name a file inside a folder, else UsageError."""
    fault = None
    if not isinstance(name, str) or not name.strip():
        fault = "is empty or no text"
    elif any(unicodedata.category(letter).startswith("C") for letter in name):
        fault = "holds invisible or control characters"
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
    """The SHA-256 of a file in hexadecimal. OralError when it is missing."""
    with _present(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _present(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise OralError(f"{path} is a folder, not a file." if path.is_dir() else f"No file {path}.")
    return path


def _finite(tensor: "Tensor") -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # 8-bit floats have no isfinite of their own
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
