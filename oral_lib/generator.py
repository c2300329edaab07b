"""The generator: a sentence and a base model in, LoRA weights out."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oral_lib import seeds, storage
from oral_lib.documents.document import load_json
from oral_lib.documents.words import short
from oral_lib.errors import OralError, PreflightError, UsageError, closest
from oral_lib.lora import peft_folder
from oral_lib.method import tokenization
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.conditioning import MOST_LABELS, Examples
from oral_lib.method.config import GeneratorConfig, SamplingConfig
from oral_lib.method.model import ORAL
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.stored import checks, compression, shards
from oral_lib.method.tokenization import Layout
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import HashedWords, TextEncoder, load_encoder

FORMAT = 3


class Conditions(NamedTuple):
    """What a sample is conditioned on, for one base model of a generator.

    Args:
        base: name of the base model in the generator.
        c: [1, m] of text and base model.
        c_free: [1, m] of the base model only, for guidance.
    """

    base: str
    c: Tensor
    c_free: Tensor

    def mixed(self, other: "Conditions", weight: float) -> "Conditions":
        """(1 - weight) of these and `weight` of `other`. UsageError for different base models."""
        if self.base != other.base:
            raise UsageError(
                f"conditions of {self.base!r} and {other.base!r}: both must have one base model."
            )
        return Conditions(
            self.base,
            torch.lerp(self.c, other.c, weight),
            torch.lerp(self.c_free, other.c_free, weight),
        )


class Generator:
    """A network (`ORAL`) with the encoder of its texts: a sentence becomes an adapter.

    Args:
        network: the trained network.
        manifest: what it was trained on; stored next to it.
        sampling: how `generate` samples unless it is given other values.
        source: where the text encoder is read from.
        encoder: the text encoder, if it is loaded already.

    The generator below is that of `./reproduce.sh --scale smoke`.

    >>> generator = Generator.from_pretrained("runs/smoke/made/generator", source="made")
    >>> [adapter] = generator.generate("Is it good news?", "tiny-encoder")
    >>> adapter["base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"].shape
    torch.Size([4, 64])
    """

    def __init__(
        self,
        network: ORAL,
        manifest: dict | None = None,
        sampling: SamplingConfig | None = None,
        *,
        source: str = "packages",
        encoder: TextEncoder | HashedWords | None = None,
    ):
        self.network, self.manifest = network, manifest or {}
        self.sampling, self.source = sampling or SamplingConfig(), source
        if encoder is not None:
            self.encoder = encoder

    @cached_property
    def encoder(self) -> TextEncoder | HashedWords:
        """The text encoder, loaded at its first use. UsageError if there is none of this name."""
        return load_encoder(self.config.text_encoder, self.source)

    @property
    def config(self) -> GeneratorConfig:
        """What training fixed."""
        return self.network.config

    @property
    def bases(self) -> dict[str, BaseEntry]:
        """What is stored of each base model, by name."""
        return self.network.bases

    def generate(
        self,
        text: str,
        base: str | BaseModel,
        n: int = 1,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        examples: Sequence[tuple[str, int]] = (),
        chunk: int = 16,
        statistics: TokenStatistics | None = None,
        **changes: Any,
    ) -> list[dict[str, Tensor]]:
        """n adapters: PEFT's saved names, float32, CPU.

        Args:
            text: what the task is; an empty text is replaced by the learned vector for "no text".
            base: a name from this generator, or a BaseModel whose description and weights are read.
            n: number of adapters.
            seed: the same seed gives the same adapters; regression does not depend on it.
            sampling: default: that of the generator.
            examples: labelled rows of the task, each the text and the number of its label.
            chunk: adapters computed at once; bounds the memory.
            statistics: decode with these instead of the statistics of the base model.
            **changes: fields of `SamplingConfig` to replace, such as `temperature`, unless None.

        Raises:
            UsageError: an unknown base model or option, another layout, or a value out of range.
            OralError: the network returned NaN or infinite values.
        """
        sampling = self.chosen_sampling(sampling, changes)
        conditions = self.conditions(text, base, examples=examples)
        return self.sample(conditions, n, seed, sampling, chunk=chunk, statistics=statistics)

    def sample(
        self,
        conditions: Conditions,
        n: int = 1,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        *,
        chunk: int = 16,
        statistics: TokenStatistics | None = None,
    ) -> list[dict[str, Tensor]]:
        """n adapters from `conditions`; `generate` describes the other arguments."""
        if n < 1:
            raise UsageError(f"n={n}: must be 1 or more.")
        sampling = sampling or self.sampling
        name, c, c_free = conditions
        entry, stream = self.bases[name], seeds.generator(seed, "sample", name)
        mask = statistics and statistics.mask(entry.layout).to(c.device)
        statistics = (statistics or entry.statistics).to(c.device)
        adapters: list[dict[str, Tensor]] = []
        for first in range(0, n, chunk):
            b = min(chunk, n - first)
            # adapter by adapter: torch would fill one tensor for all of them in another order
            noise = torch.stack([self.network.noise(name, sampling, stream) for _ in range(b)])
            noise = sampling.temperature * noise.to(c.device)
            c_b, free = c.expand(b, -1), c_free.expand(b, -1)
            k0 = self.network.sample(name, c_b, noise, sampling, c_free=free, mask=mask)
            adapters += tokenization.decode(entry.layout, statistics.denormalise(k0).cpu())
        return adapters

    @torch.inference_mode()
    def trace(
        self,
        text: str,
        base: str | BaseModel,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        **changes: Any,
    ) -> tuple[Tensor, Tensor, list[int]]:
        """The inside of one sample: prototypes [l, m], the tokens [s + 1, l, k or r] from noise to
        K_0, and the diffusion step t of each state (0 for the last).

        The arguments are described at `generate`.

        Raises:
            UsageError: plain regression has no diffusion; or as `generate`.
        """
        if self.network.diffusion is None:
            raise UsageError("plain regression has no diffusion to trace: use another generator.")
        sampling = self.chosen_sampling(sampling, changes)
        name, c, c_free = self.conditions(text, base)
        stream, states = seeds.generator(seed, "sample", name), []
        noise = self.network.noise(name, sampling, stream)[None].to(c.device)
        last = self.network.sample(
            name, c, sampling.temperature * noise, sampling, c_free=c_free, trace=states.append
        )
        steps = [*self.network.diffusion.timesteps(sampling.steps), 0]
        p = self.network.prototypes(name, c)[0].float().cpu()
        return p, torch.cat([*states, last]).cpu(), steps

    def chosen_sampling(
        self, sampling: SamplingConfig | None, changes: dict[str, Any]
    ) -> SamplingConfig:
        """`sampling`, or the options of this generator, with `changes`, unless None.

        UsageError for an unknown option, or one without effect.
        """
        base, changes = (
            sampling or self.sampling,
            {k: v for k, v in changes.items() if v is not None},
        )
        names = asdict(base)
        if odd := sorted(changes.keys() - names.keys()):
            raise UsageError(
                f"{odd[0]}={changes[odd[0]]!r}: no such option.{closest(odd[0], names)} "
                f"There are {', '.join(names)}."
            )
        changed = {name for name, value in changes.items() if value != names[name]}
        if self.network.diffusion is None and (odd := sorted(changed - {"projection"})):
            raise UsageError(
                f"{odd[0]}={changes[odd[0]]!r} has no effect on plain regression: leave it out."
            )
        return replace(base, **changes)

    def conditions(
        self,
        text: str | Tensor,
        base: str | BaseModel,
        c_model: tuple[Tensor, Tensor] | None = None,
        examples: Sequence[tuple[str, int]] = (),
    ) -> Conditions:
        """What samples for a text and a base model are conditioned on.

        Args:
            text: as for `generate`, or the embedding [e] of a text, such as a mean of two.
            base: as for `generate`.
            c_model: structure [e] and fingerprint [f] of another base model, as a control.
            examples: as for `generate`.

        Raises:
            UsageError: an unknown base model, another layout, or examples that are not read.
            OralError: the embedding has another size.
        """
        name, described = self._resolve(base)
        c_model, network = c_model or described, self.network
        used = self.config.uses_text and (not isinstance(text, str) or bool(text.strip()))
        given = torch.tensor([used], device=network.device)
        embedding = torch.zeros(1, len(self.bases[name].structure))
        if used:
            size = embedding.shape[1]
            embedding = self.encoder.encode([text]) if isinstance(text, str) else text[None]
            if embedding.shape[1] != size:
                raise OralError(
                    f"the text encoder {self.config.text_encoder!r} returns {embedding.shape[1]} "
                    f"numbers, this generator reads {size}: it belongs to another text encoder."
                )
        embedding = embedding.to(network.device)
        c_model = c_model and tuple(part.to(network.device) for part in c_model)
        with torch.inference_mode():
            rows = self._read(examples) if len(examples) else None
            c = network.conditions(name, embedding, given, c_model, examples=rows)
            c_free = network.conditions(name, embedding, torch.zeros_like(given), c_model)
        return Conditions(name, c, c_free)

    def _read(self, examples: Sequence[tuple[str, int]]) -> Examples:
        """Labelled rows as the network reads them."""
        if not self.config.examples:
            raise UsageError("this generator reads no examples: leave them out.")
        texts, labels = zip(*examples, strict=True)
        for label in labels:
            if type(label) is not int or not 0 <= label < MOST_LABELS:
                raise UsageError(
                    f"examples: the label {label!r} must be a whole number from 0 to "
                    f"{MOST_LABELS - 1}."
                )
        numbers, device = torch.tensor([labels]), self.network.device
        rows = self.encoder.encode(list(texts))[None].to(device)
        given = torch.ones(numbers.shape, dtype=torch.bool, device=device)
        return Examples(rows, numbers.to(device), given)

    def _resolve(self, base: str | BaseModel) -> tuple[str, tuple[Tensor, Tensor] | None]:
        """(name of the entry, c_model of a BaseModel or None for the stored one)."""
        if isinstance(base, str):
            if base not in self.bases:
                raise UsageError(
                    f"this generator has no base model {base!r}.{closest(base, self.bases)} "
                    f"It has {', '.join(self.bases)}."
                )
            return base, None
        layout = Layout.of(base.lora_init(), self.config.k)
        for name in sorted(self.bases, key=lambda name: name != base.name):
            if self.bases[name].layout == layout:
                return name, describe_base(base, self.encoder)
        raise UsageError(
            f"no base model of this generator has the layout of {base.name!r} ({layout.l} tokens): "
            "train a generator on a zoo of this architecture."
        )

    # -- on disk ----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights, config.json and, last, manifest.json, without which nothing counts.

        The weights are compressed (`method.stored.compression`): `from_pretrained` returns a
        generator that is saved to the same bytes again, and samples as the saved file does.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        hashes = shards.write(folder, compression.compress(self.network))
        bases = {
            name: {"layout": entry.layout.to_json(), "peft_config": entry.peft_config}
            for name, entry in self.bases.items()
        }
        content = {"format": FORMAT, "generator": asdict(self.config), "bases": bases}
        content["sampling"] = asdict(self.sampling)
        storage.write_json(folder / "config.json", content)
        manifest = {**self.manifest, "files": hashes, "sha256": shards.identity(hashes)}
        storage.write_json(folder / "manifest.json", manifest)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        *,
        source: str = "packages",
    ) -> "Generator":
        """The generator in `folder`, hash-checked, for sampling.

        Args:
            folder: what `save_pretrained` wrote.
            device: of the network.
            source: where the text encoder is read from.

        Raises:
            PreflightError: there is no generator in `folder`.
            OralError: it is damaged, of another format, or its files do not fit together.
        """
        folder = Path(folder)
        if not (folder / "manifest.json").exists():
            raise PreflightError(
                f"no generator in {folder}: run ./reproduce.sh to train one, or name a folder that "
                "holds config.json, manifest.json and the files of weights."
            )
        try:
            network, sampling, manifest = _read(folder)
        except UsageError as error:  # the fault of a file, not of an argument
            raise OralError(f"{error} Train the generator again, or download it.") from error
        return cls(network.to(device).eval(), manifest, sampling, source=source)


def _read(folder: Path) -> tuple[ORAL, SamplingConfig, dict]:
    """(network, sampling options, manifest) of the generator in `folder`."""
    manifest = load_json(peft_folder.inside(folder, "manifest.json"))
    document = load_json(peft_folder.inside(folder, "config.json"))
    version = document.content.get("format") if isinstance(document.content, dict) else None
    if version != FORMAT:
        raise OralError(
            f"{folder} has format {short(version)}, this code reads {FORMAT}: train the generator "
            "again, or download it in the new format."
        )
    manifest.check(checks.MANIFEST_SCHEMA)
    hashes = manifest.content["files"]
    if shards.identity(hashes) != manifest.content["sha256"]:
        raise manifest.error("is damaged: it is not the hash of files.", "sha256")
    network, sampling = checks.read_network(document, shards.read(folder, hashes))
    return network, sampling, manifest.content


def describe_base(base: BaseModel, encoder: TextEncoder) -> tuple[Tensor, Tensor]:
    """c_model of a base model: (embedding [e] of its description, fingerprint [f])."""
    return encoder.encode([base.describe()])[0], base.fingerprint()
