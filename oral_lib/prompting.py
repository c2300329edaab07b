"""Prompting: one sentence in, a LoRA adapter out that PEFT loads as any other.

import oral_lib
[lora] = oral_lib.prompt("Decide whether a review is positive.", base="smollm2-135m")
lora.save("my-lora")
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from oral_lib import adapters, bases, plan, storage, zoo
from oral_lib.errors import OralError, UsageError
from oral_lib.generator import Generator


@dataclass(frozen=True)
class PromptedLora:
    """A generated adapter: tensors by PEFT's saved names, PEFT configuration and what made it."""

    tensors: dict[str, Tensor]
    config: dict
    card: adapters.Card

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes a standard PEFT folder with a model card and returns it."""
        return adapters.save(folder, self.tensors, self.config, self.card, overwrite=overwrite)


def prompt(
    task: str,
    *,
    base: str,
    n: int = 1,
    seed: int = 0,
    guidance: float = 1.0,
    temperature: float | None = None,
    generator: str | Path | None = None,
    scale: str | None = None,
    source: str = "packages",
    device: str = "cpu",
) -> list[PromptedLora]:
    """`n` adapters for the task that the sentence `task` describes, on the base model `base`.

    `generator` is a generator's folder; by default the one that ./reproduce.sh trained at `scale`
    from `source` for the experiment of `base`. The same seed gives the same adapters. UsageError
    for an empty sentence or an unknown base model, PreflightError if there is no generator yet.
    """
    if not task.strip():
        raise UsageError("the task is an empty sentence: say what the adapter is to do.")
    spec = bases.spec(base)
    scale = scale or plan.default_scale()
    made_here = "made" if scale == "smoke" else source
    run = plan.experiment_folder(scale, made_here, experiment=spec.experiment)
    folder = Path(generator) if generator else run / "generator"
    model = Generator.from_pretrained(folder, device)
    how = {"guidance": guidance, "temperature": temperature, "source": made_here}
    made = model.generate(task, base, n, seed, **how)
    config = model.known[base].peft_config
    members = _zoo_beside(folder, model, base)
    loras = []
    for tensors in made:
        name, far = adapters.nearest(tensors, members, config) if members else ("", None)
        card = adapters.Card(
            text=task,
            base=config["base_model_name_or_path"],
            loader=f'oral_lib.load_base("{base}").model',
            generator=f"{model.manifest['sha256'][:12]} ({model.manifest.get('scale', 'custom')})",
            seed=seed,
            nearest=name,
            distance=far.total if far else None,
        )
        loras.append(PromptedLora(tensors, config, card))
    return loras


def _zoo_beside(folder: Path, model: Generator, base: str) -> list[tuple[str, dict[str, Tensor]]]:
    """The adapters of `base` that the generator was trained on, those of them that lie beside it
    as they were then. OralError for a manifest that does not say which."""
    try:
        listed = [
            (storage.safe_name(entry["task"]), int(entry["seed"]), entry["sha256"])
            for entry in model.manifest.get("zoo", ())
            if entry["base"] == base
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise OralError(
            f"manifest.json in {folder} does not say what the generator was trained on "
            f"({type(error).__name__}: {error}): train or download it again."
        ) from error
    members = []
    for task, seed, sha256 in listed:
        file = zoo.folder(folder.parent, base, task, seed) / "adapter_model.safetensors"
        if file.is_file() and storage.sha256(file) == sha256:
            members.append((f"{task}, seed {seed}", storage.read_tensors(file)))
    return members
