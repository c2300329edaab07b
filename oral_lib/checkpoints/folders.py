"""Files of a model's folder: named ones are read, and nothing else that lies there takes part.

Adapters, checkpoints, code, generation settings and backups may lie in the same folder. Libraries
look for such files by themselves. So they get a folder of links to the named files only, with
copies of the JSON settings from which unknown keys are left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oral_lib import storage
from oral_lib.errors import OralError, PreflightError

MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
WEIGHT_STEMS = ("model", "diffusion_pytorch_model", "open_clip_model")  # names before .safetensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with the weights of the model in `folder`; [] if there are none.

    One file of a name in `WEIGHT_STEMS`, or the shards that an index of such a name lists.

    Raises:
        OralError: an index lists a file that is missing or lies elsewhere.
    """
    for name in WEIGHT_STEMS:
        if (file := folder / f"{name}.safetensors").is_file():
            return [file]
        if (index := folder / f"{name}.safetensors.index.json").is_file():
            return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    content = storage.read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise OralError(f"{index} has no weight_map: put the released file there again.")
    shards = sorted(set(map(str, names.values())))
    for name in shards:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise OralError(f"{index} lists {name!r}, which is not a safetensors file next to it.")
        if not (index.parent / name).is_file():
            raise OralError(f"{index} lists {name!r}, which is missing: put the file there again.")
    return [index.parent / name for name in shards]


def weight_links(folder: Path) -> list[Path]:
    """`weight_files`, and their index if there is one."""
    files = weight_files(folder)
    indices = [folder / f"{name}.safetensors.index.json" for name in WEIGHT_STEMS]
    single = len(files) == 1 and files[0].stem in WEIGHT_STEMS
    return files if single else [*files, *[index for index in indices if index.is_file()][:1]]


def read_settings(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. OralError if the file holds anything else."""
    content = storage.read_json(file)
    if not isinstance(content, dict):
        kind = "null" if content is None else f"a {type(content).__name__}"
        raise OralError(f"{file} holds {kind} where settings by name are expected.")
    return content


@contextmanager
def only(files: Iterable[Path], settings: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder with links to `files` and JSON files of `settings` by file name.

    PreflightError if no such folder can be created.
    """
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="oral-model-")))
            for file in files:
                (folder / file.name).symlink_to(file.absolute())
            for name, content in settings.items():
                storage.write_json(folder / name, content)
        except OSError as error:
            raise PreflightError(
                f"Cannot create a temporary folder of links ({error.strerror}): set TMPDIR to a "
                "writable folder of a file system with symbolic links."
            ) from error
        yield folder
