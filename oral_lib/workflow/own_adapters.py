"""Training a generator on adapters of one's own: a manifest in, a saved generator out.

A manifest has one JSON object a line, `{"path": ..., "text": ..., "base": ...}`:

    path    the PEFT folder of a LoRA adapter, relative to the folder of the manifest
    text    what the adapter does; adapters with the same text belong to one task
    base    optional: a description of the base model, the same in every line that has it

All adapters belong to one base model. No task files, registry entry or base weights are needed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from oral_lib import lora, method, paths, seeds, storage
from oral_lib.documents.document import load_json_lines
from oral_lib.documents.schema import VISIBLE
from oral_lib.documents.words import short
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.generator import Generator
from oral_lib.lora.adapter import Adapter, LoraSettings, factors, first_difference
from oral_lib.method.conditioning import FINGERPRINT
from oral_lib.models.text_encoder import HashedWords, TextEncoder, load_encoder

_SCHEMA = {
    "type": "object",
    "required": ["path", "text"],
    "additionalProperties": False,
    "properties": {"path": VISIBLE, "text": VISIBLE, "base": VISIBLE},
}


@dataclass(frozen=True)
class OwnAdapter:
    """One line of a manifest with the adapter that it names."""

    line: int
    folder: Path
    text: str
    base: str
    tensors: Adapter
    settings: LoraSettings


# ---------------------------------------------------------------- the manifest
def read_manifest(file: Path) -> list[OwnAdapter]:
    """The adapters of a manifest, in its order; empty lines are skipped.

    Raises:
        UsageError: the file is unreadable or has fewer than two adapters. Or a line is wrong, and
            the message names it: not a JSON object, a missing or unknown key, an empty value, no
            such folder, not a LoRA adapter, or another shape, scale or base than the first.
    """
    adapters: list[OwnAdapter] = []
    for document in load_json_lines(file):
        document.check(_SCHEMA)
        try:
            adapter = _load(document.first_line, document.content, file.parent)
            if adapters:
                _check_fit(adapter, adapters[0])
        except OralError as error:
            raise document.error(str(error)) from error
        adapters.append(adapter)
    if len(adapters) < 2:
        raise UsageError(f"{file} has {len(adapters)} adapters: at least two are needed.")
    bases = {adapter.base: adapter.line for adapter in reversed(adapters) if adapter.base}
    if len(bases) > 1:
        (other, line), (base, first) = list(bases.items())[-2:]
        raise UsageError(
            f"{file}:{line}: base: {short(other)} differs from {short(base)} in line {first}. All "
            "adapters of a manifest belong to one base model."
        )
    return adapters


def _load(number: int, fields: dict[str, str], parent: Path) -> OwnAdapter:
    """The adapter of one line. Raises OralError if its folder has no complete LoRA."""
    path = fields["path"]
    folder = paths.full(path) if path.startswith("~") else parent / path
    try:
        missing = not folder.is_dir()
    except OSError:  # such as a name that is too long
        missing = True
    if missing:
        raise UsageError(f"path {short(path, 300)}: there is no folder {short(str(folder), 300)}.")
    try:
        tensors, config = lora.load(folder)
        settings = LoraSettings.of(config)
    except OralError as error:
        raise UsageError(f"path {short(path, 300)} is not a LoRA adapter: {error}") from error
    return OwnAdapter(number, folder, fields["text"], fields.get("base", ""), tensors, settings)


def _check_fit(adapter: OwnAdapter, first: OwnAdapter) -> None:
    """Raises UsageError unless shapes and scales equal the first adapter's."""
    shapes = {name: tensor.shape for name, tensor in first.tensors.items()}
    if difference := first_difference(adapter.tensors, shapes):
        raise UsageError(f"the adapter differs from line {first.line}: {difference}.")
    if adapter.settings != first.settings:
        raise UsageError(
            f"the adapter differs from line {first.line}: {adapter.settings}, expected "
            f"{first.settings}. Rank and lora_alpha have to agree."
        )


# ---------------------------------------------------------------- training
def train_generator(
    file: Path,
    save: Path,
    *,
    text_encoder: str = "minilm-l6",
    steps: int | None = None,
    seed: int = 0,
    source: str = "packages",
    device: str = "cpu",
) -> tuple[Path, str]:
    """(folder of the trained generator, name of its base model).

    Statistics are centred on the mean of the LoRA A matrices with LoRA B = 0, an estimate of the
    shared initialisation: all-zero tokens leave the base model unchanged. The base model is
    described in words only, because its weights are not loaded.

    Args:
        file: the manifest.
        save: a new or empty folder.
        text_encoder: "minilm-l6" (in the asset cache), or "hashed-words", which needs no files.
        steps: of training; default: that of `TrainingConfig`.
        seed: of initial weights and all draws.
        source: where the text encoder is read from.
        device: where to train.

    Raises:
        UsageError: a wrong line of the manifest (see `read_manifest`), or `save` is not empty.
        PreflightError: the text encoder is not in the asset cache.
    """
    if save.is_file() or (save.is_dir() and any(save.iterdir())):
        raise UsageError(f"{save} is not empty: name another folder with --save.")
    adapters = read_manifest(file)
    encoder = _encoder(text_encoder, source)
    peft_config = storage.read_json(adapters[0].folder / "adapter_config.json")
    base = _base_name(peft_config)
    config = _config(adapters, text_encoder)
    training = method.TrainingConfig(seed=seed)
    training = method.TrainingConfig(seed=seed, steps=training.steps if steps is None else steps)
    data = _training_set(adapters, config, encoder)
    described = next((adapter.base for adapter in adapters if adapter.base), base)
    entry = data.base(encoder.encode([described])[0], torch.zeros(FINGERPRINT), peft_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "generator-init"))
        network = method.ORAL(config, {base: entry})
    network, losses = method.train(network, {base: data}, training, device=device)
    manifest: dict[str, Any] = {
        "kind": "generator",
        "adapters": [
            {
                "path": str(adapter.folder),
                "text": adapter.text,
                "sha256": storage.sha256(adapter.folder / "adapter_model.safetensors"),
            }
            for adapter in adapters
        ],
        "base": described,
        "training": asdict(training),
        "losses": [round(loss, 6) for loss in losses],
    }
    Generator(network, manifest, source=source, encoder=encoder).save_pretrained(save)
    return save, base


def _encoder(name: str, source: str) -> TextEncoder | HashedWords:
    """The text encoder; the error for a missing one says how to train without it."""
    try:
        return load_encoder(name, source)
    except PreflightError as error:
        raise PreflightError(
            f"the text encoder {name!r} is not available: {error} It is downloaded by `python -m "
            f"oral_lib assets {name}`. `--text-encoder {HashedWords.name}` needs no files, but "
            "does not understand synonyms."
        ) from error


def _base_name(peft_config: dict) -> str:
    """The name of the base model in the generator: the last part of the name in PEFT's file."""
    path = str(peft_config.get("base_model_name_or_path") or "")
    return Path(path).name or "base"


def _config(adapters: Sequence[OwnAdapter], text_encoder: str) -> method.GeneratorConfig:
    """The default network, with no more components than adapters, conditioned on words only."""
    default = method.GeneratorConfig()
    values = sum(tensor.numel() for tensor in adapters[0].tensors.values())
    components = min(default.components, len(adapters))
    return method.GeneratorConfig(
        k=max(components, min(default.k, values)),
        components=components,
        text_encoder=text_encoder,
        arm="describe",
    )


def _training_set(
    adapters: Sequence[OwnAdapter], config: method.GeneratorConfig, encoder: TextEncoder
) -> method.TrainingSet:
    """The adapters as tokens with the embeddings of their texts."""
    tensors = [adapter.tensors for adapter in adapters]
    zero = set(factors(tensors[0]).values())  # LoRA B
    start = {
        name: torch.stack([adapter[name].float() for adapter in tensors]).mean(0)
        * (name not in zero)
        for name in tensors[0]
    }
    tasks = [adapter.text for adapter in adapters]
    texts = {text: encoder.encode([text]) for text in dict.fromkeys(tasks)}
    layout = method.Layout.of(start, config.k)
    return method.TrainingSet.of(layout, start, tensors, tasks, texts, config)
