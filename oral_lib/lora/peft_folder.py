"""A LoRA adapter on disk (a standard PEFT folder) and as the weight change it makes.

Letters: r rank. W = W0 + s B A with A [r, in], B [out, r] and s = alpha / r (or alpha / sqrt r).
Folders may come from anyone: safetensors and JSON only, and nothing outside the folder is read.
"""

import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from oral_lib import storage
from oral_lib.errors import OralError, UsageError
from oral_lib.lora.adapter import PAIRS, PREFIX, Adapter

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
_EXTRAS = (".lora_magnitude_vector", ".lora_B.bias")  # what else of LoRA a PEFT file may hold
_AUTO = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}


@dataclass(frozen=True)
class Card:
    """What a model card tells of a generated adapter."""

    text: str  # the adapter was prompted with it; may be empty
    base: str
    generator: str
    seed: int
    nearest: str = ""  # name of the nearest adapter of the zoo
    distance: float | None = None  # to it, ||dW - dW'|| over all weights
    loader: str = ""  # Python expression that gives the base; default: transformers' Auto class

    def __post_init__(self) -> None:
        for name in ("base", "generator", "nearest"):
            value = getattr(self, name)
            if not value.isprintable() or not (value.strip() or name == "nearest"):
                raise UsageError(f"A model card wants one line as {name}: got {value!r}.")
        if self.distance is not None and not (isfinite(self.distance) and self.distance >= 0):
            raise UsageError(f"A distance of {self.distance!r} is none: use 0 or above, or None.")


def save(
    folder: str | Path,
    tensors: Adapter,
    config: LoraConfig | Mapping[str, Any],
    card: Card,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """The PEFT folder written, whole or not at all: `folder`, or `name` inside it.

    It holds the weights, the configuration and a model card, and loads with
    `PeftModel.from_pretrained(base, folder)` alone. UsageError when the folder is in use: one that
    is not empty is replaced only with `overwrite` and when it holds nothing but an adapter.
    OralError when tensors and configuration do not fit each other.
    """
    folder = Path(folder) if name is None else _inside(Path(folder), storage.safe_name(name))
    folder, config = folder.resolve(), _lora(config)
    _check_factors(tensors, config)
    _check_free(folder, overwrite)
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    settings["inference_mode"] = True
    settings["base_model_name_or_path"] = config.base_model_name_or_path or card.base
    with storage.replacing(folder, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        temporary.mkdir()
        storage.write_tensors(temporary / WEIGHTS, tensors)
        storage.write_json(temporary / CONFIG, settings)
        storage.write_text(temporary / CARD, _card(card, settings, folder.name))
    return folder


def load(folder: str | Path, *, name: str | None = None) -> tuple[dict[str, Tensor], LoraConfig]:
    """(tensors on the CPU by PEFT's saved names, configuration) of the adapter in `folder`, or in
    the folder `name` inside it.

    OralError in one line for anything but a whole, finite, consistent LoRA in safetensors: pickled
    weights, NaN, factors of a shape that the configuration does not give, links out of the folder.
    """
    folder = Path(folder)
    if name is not None:
        folder = _inside(folder, storage.safe_name(name))
    if not folder.is_dir():
        raise OralError(f"There is no adapter folder {str(folder)!r}.")
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise OralError(
            f"{str(folder)!r} holds only adapter_model.bin: a pickle can run code when it is read. "
            f"Ask its author for {WEIGHTS}."
        )
    settings = storage.read_json(_inside(folder, CONFIG))
    if not isinstance(settings, dict):
        raise OralError(f"{CONFIG} in {str(folder)!r} is no JSON object: not written by PEFT.")
    config = _lora({"peft_type": None, **settings})
    tensors = storage.read_tensors(_inside(folder, WEIGHTS))
    _check_factors(tensors, config)
    return tensors, config


def _lora(config: LoraConfig | Mapping[str, Any]) -> LoraConfig:
    """`config` as a LoraConfig whose ranks, scales and patterns can be used."""
    try:
        made = isinstance(config, LoraConfig)
        if (kind := config.peft_type if made else config.get("peft_type", "LORA")) != "LORA":
            raise ValueError(f"peft_type is {kind!r}, not 'LORA'")
        if not made:  # PEFT, too, ignores a runtime_config that comes from a file
            settings = {key: value for key, value in config.items() if key != "runtime_config"}
            config = LoraConfig.from_peft_type(**settings)
        if config.target_parameters:
            raise ValueError("LoRA on bare parameters (target_parameters) is not supported")
        ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
        for r in (config.r, *ranks.values()):
            if type(r) is not int or r < 1:
                raise ValueError(f"rank {r!r} is no whole number from 1 upwards")
        for alpha in (config.lora_alpha, *alphas.values()):
            if not isfinite(alpha):
                raise ValueError(f"lora_alpha {alpha!r} is no number")
        for pattern in (*ranks, *alphas):
            re.compile(pattern)
    except Exception as error:  # PEFT checks little: hostile values fail anywhere in it
        first = (str(error).splitlines() or [""])[0][:200]
        raise OralError(f"No LoRA configuration ({type(error).__name__}): {first}.") from error
    return config


def _rank(config: LoraConfig, module: str) -> int:
    ranks = config.rank_pattern or {}
    return ranks.get(get_pattern_key(ranks, module), config.r)


def _scaling(config: LoraConfig, module: str) -> float:
    alphas, r = config.alpha_pattern or {}, _rank(config, module)
    alpha = alphas.get(get_pattern_key(alphas, module), config.lora_alpha)
    return alpha / (sqrt(r) if config.use_rslora else r)


def _check_factors(tensors: Adapter, config: LoraConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by module, once `tensors` are found to be a LoRA of `config`'s ranks."""
    pairs = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isprintable() or {*name} & {"/", "\\"}:
            raise OralError(f"{name!r} is no name of a tensor: parts are divided by dots only.")
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise OralError(f"Tensor {name!r} ({tensor.dtype}) holds NaN, infinity or no floats.")
        if first := next((end for end in PAIRS if name.endswith(end)), None):
            stem = name.removesuffix(first)
            if stem + PAIRS[first] not in tensors:
                raise OralError(f"Tensor {name!r} has no {PAIRS[first]!r} beside it.")
            module = stem.removeprefix(PREFIX)
            pairs[module] = (tensor, tensors[stem + PAIRS[first]])
            _check_pair(name, *pairs[module], _rank(config, module))
        elif second := next((end for end in PAIRS.values() if name.endswith(end)), None):
            missing = next(a for a, b in PAIRS.items() if b == second)
            if name.removesuffix(second) + missing not in tensors:
                raise OralError(f"Tensor {name!r} has no {missing!r} beside it.")
        elif ".lora_" in name and not name.endswith(_EXTRAS):
            raise OralError(f"Tensor {name!r} is no LoRA tensor that PEFT saves under this name.")
    if not pairs:
        raise OralError("These tensors hold no LoRA factors (lora_A and lora_B).")
    return pairs


def _check_pair(name: str, a: Tensor, b: Tensor, r: int) -> None:
    """OralError unless A is [r, in, ...] and B [out, r, ...]; a grouped convolution has r / groups
    in B (PEFT does not group A)."""
    known = a.ndim == b.ndim >= 2 and a.shape[0] == r
    if not known or not (b.shape[1] == r or (b.ndim > 2 and b.shape[1] and r % b.shape[1] == 0)):
        raise OralError(
            f"Tensor {name!r}: A {tuple(a.shape)} and B {tuple(b.shape)} do not make a LoRA of "
            f"rank {r}, which wants A ({r}, in) and B (out, {r})."
        )


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    # realpath, as Path.resolve raises on a link to itself
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise OralError(f"{name!r} in {str(folder)!r} is a link that leads out of the folder.")
    return path


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file: name a folder for the adapter.")
    held = {path.name for path in folder.iterdir()}
    if held and CONFIG not in held:
        raise UsageError(f"{str(folder)!r} is in use and holds no adapter: name another folder.")
    if alien := sorted(held - {WEIGHTS, CONFIG, CARD}):
        raise UsageError(
            f"{str(folder)!r} also holds {alien[0]!r}, which replacing it would delete: "
            "name another folder."
        )
    if held and not overwrite:
        raise UsageError(f"{str(folder)!r} holds an adapter: allow overwriting or name another.")


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
        near = f"{card.distance:.4g} to {card.nearest or 'an unnamed one'} (Frobenius norm)"
    quote = textwrap.indent(card.text.strip() or "(no text)", "> ", lambda line: True)
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---

# A generated LoRA

No training made this adapter: ORAL generated it from a text and a base model. The text:

{quote}

| | |
| --- | --- |
| base model | {card.base} |
| generator | {card.generator} |
| seed | {card.seed} |
| distance to the nearest trained adapter | {near} |

```python
import {imports}
base = {loader}
model = peft.PeftModel.from_pretrained(base, {folder!r})
```
"""
