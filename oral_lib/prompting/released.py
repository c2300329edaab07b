"""The released generators: small trained generators that a clone of the repository contains."""

import re
from pathlib import Path

import torch

from oral_lib import storage
from oral_lib.documents.words import short
from oral_lib.errors import OralError, PreflightError
from oral_lib.generator import Generator
from oral_lib.lora.peft_folder import CARD, inside
from oral_lib.zoo import run_folders
from oral_lib.zoo.run_folders import RESTORE

SUMS = "SHA256SUMS"  # of all files but the card, as sha256sum writes it


def pretrained(
    name: str = "desk", device: str | torch.device = "cpu", *, source: str | None = None
) -> Generator:
    """The released generator called `name`, after a check of the hashes of its files.

    Args:
        name: the scale whose run trained it; a folder of results/generators.
        device: of the network.
        source: where the text encoder is read from. Default: the source of the generator.

    Raises:
        PreflightError: there is no released generator here, as in an installed package.
        UsageError: there are others, but none of this name.
        OralError: a file is missing or damaged.

    The generator below is that of `oral release --scale smoke`.

    >>> generator = pretrained("smoke")
    >>> sorted(generator.bases)
    ['tiny-causal', 'tiny-encoder']
    """
    place = run_folders.released_generator(name)
    check_files(place.folder)
    return Generator.from_pretrained(place.folder, device, source=source or place.source)


def check_files(folder: Path) -> None:
    """OralError unless the files of a release are the listed ones, with the listed hashes."""
    sums = read_sums(folder)
    files = {path.name for path in storage.list_paths(folder)}
    if others := sorted(files - sums.keys() - {CARD, SUMS}):
        raise OralError(f"{folder} also has {short(others[0])}, which {SUMS} does not list.")
    for name, digest in sums.items():
        file = inside(folder, name)
        if not file.is_file():
            raise PreflightError(f"{file} is missing. {RESTORE}")
        if storage.sha256(file) != digest:
            raise OralError(f"{file} is damaged: its hash is not the one in {SUMS}. {RESTORE}")


def read_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a release, by name. OralError if they are not readable."""
    file = inside(folder, SUMS)
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise OralError(f"{file} is missing or unreadable. {RESTORE}") from error
    sums = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64})  ([\w.-]{1,100})", line)
        if not match:
            raise OralError(f"{file}:{number}: {short(line)} is not a hash and a name. {RESTORE}")
        sums[storage.safe_name(match[2])] = match[1]
    if not sums.keys() >= {"config.json", "manifest.json"}:
        raise OralError(f"{file} does not list config.json and manifest.json. {RESTORE}")
    return sums


def write_sums(folder: Path) -> None:
    """Writes the hashes of all files in `folder` but the card."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in (CARD, SUMS))
    lines = [f"{storage.sha256(folder / name)}  {name}\n" for name in names]
    storage.write_text(folder / SUMS, "".join(lines))
