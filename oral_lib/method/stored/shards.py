"""The weights of a generator in files of a size that repositories take, each with its hash.

A tensor beyond the size of a file is stored in parts along its first dimension: name/0, name/1, ...
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from oral_lib import storage
from oral_lib.errors import OralError
from oral_lib.lora import peft_folder

SIZE = 15_000_000  # bytes of a file
NAME = re.compile(r"^generator(-\d{5}-of-\d{5})?\.safetensors$")


def write(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The hash of each file of weights, by name; writes them into `folder`."""
    from huggingface_hub import split_torch_state_dict_into_shards

    parts = _split(tensors)
    split = split_torch_state_dict_into_shards(
        parts, filename_pattern="generator{suffix}.safetensors", max_shard_size=SIZE
    )
    hashes = {}
    for name, keys in split.filename_to_tensors.items():
        storage.write_tensors(folder / name, {key: parts[key] for key in keys})
        hashes[name] = storage.sha256(folder / name)
    for path in folder.glob("generator*.safetensors"):
        if NAME.match(path.name) and path.name not in hashes:
            path.unlink()  # of what the folder had before
    return hashes


def read(folder: Path, hashes: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of the files of weights in `folder`.

    OralError if a file is missing, damaged or a link out of the folder, or a tensor is incomplete.
    """
    parts: dict[str, Tensor] = {}
    for name, expected in sorted(hashes.items()):
        file = peft_folder.inside(folder, name)
        if storage.sha256(file) != expected:
            raise OralError(f"{file} is damaged: its hash is not the one in manifest.json.")
        tensors = storage.read_tensors(file)
        if twice := sorted(parts.keys() & tensors.keys()):
            raise OralError(f"{file}: tensor {twice[0]!r} is also in another file of {folder}.")
        parts |= tensors
    try:
        return _join(parts)
    except (RuntimeError, KeyError) as error:
        raise OralError(f"the weights in {folder} lack a part of a tensor ({error}).") from error


def identity(hashes: Mapping[str, str]) -> str:
    """One hash of all files of weights."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, with parts in place of those beyond SIZE."""
    parts = {}
    for name, tensor in tensors.items():
        if tensor.nbytes <= SIZE:
            parts[name] = tensor
            continue
        rows = max(1, len(tensor) * SIZE // tensor.nbytes)
        parts |= {f"{name}/{i}": part for i, part in enumerate(tensor.split(rows))}
    return parts


def _join(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors of `parts`. RuntimeError or KeyError if they are incomplete."""
    whole = {name: tensor for name, tensor in parts.items() if "/" not in name}
    numbers: dict[str, int] = {}
    for name in parts.keys() - whole.keys():
        stem = name.rpartition("/")[0]
        numbers[stem] = numbers.get(stem, 0) + 1
    for stem, count in numbers.items():
        pieces = [parts[f"{stem}/{i}"] for i in range(count)]
        if stem in whole or len({piece.dtype for piece in pieces}) > 1:
            raise RuntimeError(f"{stem!r} is stored twice, or in several dtypes")
        whole[stem] = torch.cat(pieces)
    return whole
