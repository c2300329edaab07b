"""A LoRA adapter on disk: a standard PEFT folder with weights, configuration and model card.

Folders may come from anyone: only safetensors and JSON are read, and nothing outside the folder.
"""

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig
from torch import Tensor

from oral_lib import paths, storage
from oral_lib.documents.document import load_json
from oral_lib.errors import OralError, UsageError
from oral_lib.lora.adapter import Adapter, LoraSettings, factors_by_module

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
FORM = "oral.json"  # how a text is put to the adapter and what it answers
_AUTO = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}


@dataclass(frozen=True)
class Card:
    """The content of the model card of a generated adapter."""

    text: str  # the prompt; may be empty
    base: str
    generator: str
    seed: int
    nearest: str = ""  # name of the nearest adapter of the zoo
    distance: float | None = None  # to it, ||dW - dW'|| over all weights
    sample: int = 1  # which of the `samples` of this seed, from 1
    samples: int = 1  # adapters generated together
    sampling: str = ""  # the sampling options
    loader: str = ""  # Python expression for the base model; default: transformers' Auto class

    def __post_init__(self) -> None:
        if not 1 <= self.sample <= self.samples:
            raise UsageError(f"A model card has sample {self.sample} of {self.samples}.")
        for name in ("base", "generator", "nearest", "sampling"):
            value, optional = getattr(self, name), name in ("nearest", "sampling")
            if not value.isprintable() or not (value.strip() or optional):
                raise UsageError(f"A model card needs one line as {name}: got {value!r}.")
        if self.distance is not None and not (isfinite(self.distance) and self.distance >= 0):
            raise UsageError(
                f"Invalid distance {self.distance!r}: must be finite and >= 0, or None."
            )


def save(
    folder: str | Path,
    tensors: Adapter,
    config: LoraConfig | Mapping[str, Any],
    card: Card,
    *,
    name: str | None = None,
    form: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """The path of the PEFT folder written. It is written completely or not at all.

    `PeftModel.from_pretrained(base, folder)` loads it; this library is not needed.

    Args:
        folder: the folder, or its parent if `name` is given.
        tensors: the adapter, by PEFT's saved names.
        config: its PEFT configuration, as a LoraConfig or as its fields.
        card: the content of the model card.
        name: a folder inside `folder`; a plain name without slashes.
        form: the content of oral.json, the form in which the adapter answers; None: no such file.
        overwrite: replace a folder that contains an adapter and nothing else.

    Raises:
        UsageError: the folder is in use, or `name` is not a plain name.
        OralError: tensors and configuration do not fit each other, or the disk is full.

    >>> import tempfile, torch
    >>> tensors = {"base_model.model.q.lora_A.weight": torch.ones(2, 4)}
    >>> tensors["base_model.model.q.lora_B.weight"] = torch.zeros(3, 2)
    >>> config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
    >>> card = Card("Is the film good?", base="tiny-base", generator="example", seed=0)
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     folder = save(parent, tensors, config, card, name="film")
    ...     sorted(path.name for path in folder.iterdir())
    ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    folder = Path(folder) if name is None else inside(Path(folder), storage.safe_name(name))
    folder, config = folder.resolve(), lora_config(config)
    _check_free(folder, overwrite)
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    _check_order(tensors, config, settings)
    settings["inference_mode"] = True
    settings["base_model_name_or_path"] = config.base_model_name_or_path or card.base
    with storage.replacing(folder, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        temporary.mkdir()
        storage.write_tensors(temporary / WEIGHTS, tensors)
        storage.write_json(temporary / CONFIG, settings)
        storage.write_text(temporary / CARD, _card(card, settings, folder.name))
        if form is not None:
            storage.write_json(temporary / FORM, form)
    return folder


def load(folder: str | Path, *, name: str | None = None) -> tuple[dict[str, Tensor], LoraConfig]:
    """(tensors on the CPU by PEFT's saved names, configuration) of an adapter on disk.

    Args:
        folder: a PEFT folder, or its parent if `name` is given.
        name: a folder inside `folder`; a plain name without slashes.

    Raises:
        UsageError: there is no such folder.
        OralError: not a complete, finite, consistent LoRA in safetensors. Refused are pickled
            weights, NaN, shapes of another rank, links out of the folder.

    >>> import tempfile, torch
    >>> tensors = {"base_model.model.q.lora_A.weight": torch.ones(2, 4)}
    >>> tensors["base_model.model.q.lora_B.weight"] = torch.zeros(3, 2)
    >>> config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     folder = save(parent, tensors, config, Card("", "tiny-base", "example", 0), name="a")
    ...     loaded, settings = load(folder)
    >>> settings.r, sorted(loaded) == sorted(tensors)
    (2, True)
    """
    folder = Path(folder)
    if name is not None:
        folder = inside(folder, storage.safe_name(name))
    if not folder.is_dir():
        raise paths.no_adapter(folder)
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise OralError(
            f"{str(folder)!r} contains only adapter_model.bin: reading a pickle can run code. "
            f"Ask its author for {WEIGHTS}."
        )
    document = load_json(inside(folder, CONFIG), str(folder / CONFIG))
    if not isinstance(document.content, dict):
        raise OralError(f"{CONFIG} in {str(folder)!r} must be a JSON object, as PEFT writes it.")
    try:
        config = lora_config({"peft_type": None, **document.content})
        tensors = storage.read_tensors(inside(folder, WEIGHTS))
        factors_by_module(tensors, LoraSettings.of(config))
    except OralError as error:
        if str(folder) in str(error):
            raise
        raise OralError(f"{folder}: {error}") from error
    return tensors, config


def lora_config(config: LoraConfig | Mapping[str, Any]) -> LoraConfig:
    """`config` as a LoraConfig with valid ranks, scales and patterns. OralError for others."""
    LoraSettings.of(config)
    if isinstance(config, LoraConfig):
        return config
    # PEFT, too, ignores a runtime_config that comes from a file
    fields = {name: value for name, value in config.items() if name != "runtime_config"}
    try:
        return LoraConfig.from_peft_type(**fields)
    except MemoryError:
        raise
    except Exception as error:  # PEFT checks little: hostile values fail anywhere in it
        first = (str(error).splitlines() or [""])[0][:200]
        raise OralError(f"Invalid LoRA configuration ({type(error).__name__}): {first}.") from error


def inside(folder: Path, name: str) -> Path:
    """`folder / name`. OralError if that is a link that leads out of the folder."""
    path = folder / name
    # realpath, as Path.resolve raises on a link to itself
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise OralError(f"{name!r} in {str(folder)!r} is a link that leads out of the folder.")
    return path


def _check_order(tensors: Adapter, config: LoraConfig, settings: dict[str, Any]) -> None:
    """OralError unless tensors and configuration fit each other, also when `settings` is sorted.

    The first pattern that matches a module counts, and the files of PEFT have patterns sorted.
    """
    modules = factors_by_module(tensors, LoraSettings.of(config))
    keys = ("rank_pattern", "alpha_pattern")
    in_file = settings | {key: dict(sorted((settings[key] or {}).items())) for key in keys}
    try:
        sorted_modules = factors_by_module(tensors, LoraSettings.of(in_file))
        fault = [name for name in modules if modules[name].scale != sorted_modules[name].scale]
    except OralError:
        fault = [*modules]
    if fault:
        raise OralError(
            f"Several patterns match module {fault[0]!r}, and a file of PEFT does not keep their "
            "order: write rank_pattern and alpha_pattern so that one of them matches."
        )


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file: name a folder for the adapter.")
    files = {path.name for path in folder.iterdir()}
    if files and CONFIG not in files:
        raise UsageError(
            f"{str(folder)!r} is in use and does not contain an adapter: name another folder."
        )
    if others := sorted(files - {WEIGHTS, CONFIG, CARD, FORM}):
        raise UsageError(
            f"{str(folder)!r} also contains {others[0]!r}, which replacing it would delete: "
            "name another folder."
        )
    if files and not overwrite:
        raise UsageError(
            f"{str(folder)!r} already contains an adapter: pass overwrite=True, or name another "
            "folder."
        )


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _card(card: Card, settings: Mapping[str, Any], folder: str) -> str:
    auto = _AUTO.get(settings["task_type"], "AutoModel")
    loader = card.loader or (
        f"transformers.{auto}.from_pretrained({settings['base_model_name_or_path']!r})"
    )
    imports = ", ".join(sorted({"peft", loader.split(".")[0]}))
    tags = ["lora", "generated", "oral"]
    front = {"base_model": card.base, "library_name": "peft", "tags": tags}
    near = "not measured"
    if card.distance is not None:
        near = _cell(card.nearest) or "an unnamed adapter"
        near = f"{card.distance:.4g} to {near} (Frobenius norm)"
    quote = textwrap.indent(card.text.strip() or "(no text)", "> ", lambda line: True)
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# A generated LoRA

No training made this adapter: ORAL generated it from a text and a base model. The text:

{quote}

| | |
| --- | --- |
| base model | {_cell(card.base)} |
| generator | {_cell(card.generator)} |
| seed | {card.seed} |
| sample | {card.sample} of {card.samples} |
| sampling | {card.sampling or "not recorded"} |
| distance to the nearest trained adapter | {near} |

```python
import {imports}
base = {loader}
model = peft.PeftModel.from_pretrained(base, {folder!r})
```
"""
