"""The generator: text of a task and a base model in, LoRA weights out.

    c = condition(text, base)                      condition.py     [b, m]
    P = recurrence(positions + c)                  recurrence.py    [b, l, m]   reads no weights
    K_0 <- denoise from noise, guided by P and c   denoise.py, schedule.py      [b, l, k]
                                   and put back among the zoo's adapters: mixture.py
    adapter = decode(denormalise(K_0))             tokens.py

One generator serves all its base models and tasks; it tells them apart by c alone. Each base model
has its own layout (l differs, k is shared) and statistics (shared by all its tasks).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from oral_lib import paths, scales, seeds, storage
from oral_lib.errors import OralError, PreflightError, UsageError, closest
from oral_lib.lora import distances, peft_folder
from oral_lib.method import tokenization
from oral_lib.method.conditioning import ARMS, Condition
from oral_lib.method.denoiser import DenoiserConfig, denoiser
from oral_lib.method.diffusion import Diffusion, DiffusionConfig
from oral_lib.method.model import BaseEntry
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.projection import WAYS
from oral_lib.method.recurrence import Recurrence, RecurrenceConfig
from oral_lib.method.tokenization import Layout
from oral_lib.models import registry
from oral_lib.models.base import BaseModel
from oral_lib.models.text_encoder import ENCODERS, TextEncoder, text_encoder
from oral_lib.zoo import store

FORMAT = 1
NOISES = ("adapter", "token", "whole")  # see `GeneratorConfig.noise`
TURNS = ("bases", "tokens", "none")  # how far components are made alike


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that decides what a generator is; how it is trained stands in `training.py`.

    diffusion=False makes the baseline "plain regression on the condition": the same network reads
    zeros instead of noised tokens and answers with K_0 at once.

    A token is told by its first `components` principal components over the zoo, or by its k values
    where `components` is 0: see `statistics.Statistics`. Components of a token are known up to a
    turn: with `turned` "none" they stay as they come, with "tokens" they are alike in all tokens of
    an adapter, with "bases" in all base models, too, for the tasks that these share.

    The denoiser sees one token at a time. So that a sample follows the same zoo adapters in all of
    its tokens, these start from one draw of `noise`, "adapter"; with a draw a "token" each goes its
    own way, and tokens do not quite fit together: the more, the more `sampling_steps` there are and
    the higher the `temperature`, the scale of that noise. One step or temperature 0 gives hardly
    any spread; temperature 1 in many steps gives that of the zoo, and of few adapters near-copies.
    With "whole" each token has a draw of its own, too, and its prototype is told what the mean of
    all the adapter's tokens is by now, so that all go the same way.

    What a denoiser of single tokens has not learnt of one is noise, another in every token. Every
    x_0 on the way is therefore put back among the zoo's adapters: it becomes the nearest mixture of
    theirs, of all tasks, with the same shares in all tokens (`mixture`), any on the way. With
    `joint` "hull" those of the last one are none below 0 and add up to 1, as in what the best
    denoiser would answer; with "span" they are any, for tasks that lie beyond those of the zoo;
    with "none" tokens stay as they are all the way.
    """

    k: int = 1536
    components: int = 64
    turned: str = "bases"
    width: int = 256
    recurrence: RecurrenceConfig = field(default_factory=lambda: RecurrenceConfig(width=256))
    denoiser: DenoiserConfig = field(default_factory=lambda: DenoiserConfig(skip=False))
    schedule: DiffusionConfig = field(default_factory=lambda: DiffusionConfig(objective="x0"))
    text_encoder: str = "minilm-l6"
    arm: str = "fingerprint"
    diffusion: bool = True
    noise: str = "adapter"
    sampling_steps: int = 20
    temperature: float = 1.0
    joint: str = "hull"

    def __post_init__(self) -> None:
        if self.width != self.recurrence.width:
            raise UsageError(
                f"width={self.width} but recurrence.width={self.recurrence.width}: make them equal."
            )
        if self.k < 1 or self.width % 4:
            raise UsageError(f"k={self.k}, width={self.width}: k >= 1 and width divisible by 4.")
        if not 0 <= self.components <= self.k:
            raise UsageError(
                f"components={self.components}: must lie from 0 (none, a token is its values) to "
                f"k = {self.k}; with so small a k give components={self.k} or 0."
            )
        if self.arm not in ARMS:
            raise UsageError(f"arm={self.arm!r}: use one of {ARMS}.{closest(self.arm, ARMS)}")
        if self.text_encoder not in ENCODERS:
            near = closest(self.text_encoder, ENCODERS)
            raise UsageError(f"text_encoder={self.text_encoder!r}: unknown.{near}")
        if self.noise not in NOISES:
            near = closest(self.noise, NOISES)
            raise UsageError(f"noise={self.noise!r}: use one of {NOISES}.{near}")
        if self.turned not in TURNS:
            near = closest(str(self.turned), TURNS)
            raise UsageError(f"turned={self.turned!r}: use one of {TURNS}.{near}")
        if self.joint not in WAYS:
            near = closest(str(self.joint), WAYS)
            raise UsageError(f"joint={self.joint!r}: use one of {WAYS}.{near}")
        if not 0 <= self.temperature <= 1:
            raise UsageError(f"temperature={self.temperature!r}: must lie in [0, 1].")
        if not 1 <= self.sampling_steps <= self.schedule.steps:
            raise UsageError(
                f"sampling_steps={self.sampling_steps}: must lie from 1 to {self.schedule.steps}."
            )

    @property
    def size(self) -> int:
        """Numbers a token: k values, or its `components`."""
        return self.components or self.k

    def fit(self, layout: Layout, values: Tensor, center: Tensor) -> TokenStatistics:
        """The statistics of a zoo's `values` [b, l, k] about `center` [l, k]."""
        turned = self.turned != "none"
        return TokenStatistics.fit(layout, values, center, self.components, align=turned)

    def draw(self, length: int, stream: torch.Generator) -> Tensor:
        """The noise [l, k or r] of an adapter of `length` tokens, at temperature 1."""
        rows = 1 if self.noise == "adapter" else length
        return torch.randn(rows, self.size, generator=stream).expand(length, -1)

    @classmethod
    def from_json(cls, content: dict) -> "GeneratorConfig":
        """The configuration that `dataclasses.asdict` wrote."""
        parts = {"recurrence": RecurrenceConfig, "denoiser": DenoiserConfig}
        parts["schedule"] = DiffusionConfig
        before = {"components": 0, "turned": "none", "noise": "token"}  # there was none of it
        before["joint"] = "none"
        content = before | content
        content["schedule"] = {"matched": False} | content["schedule"]
        if isinstance(content["joint"], bool):
            content["joint"] = "span" if content["joint"] else "none"
        if isinstance(content["turned"], bool):
            content["turned"] = "tokens" if content["turned"] else "none"
        return cls(**{k: parts[k](**v) if k in parts else v for k, v in content.items()})


def sinusoid(position: Tensor, width: int) -> Tensor:
    """[..., width] sines and cosines of `position` [...], wavelengths 2 pi to 10^4 * 2 pi."""
    rate = torch.exp(
        torch.arange(0, width, 2, device=position.device) * (-torch.log(torch.tensor(1e4)) / width)
    )
    angle = position[..., None].float() * rate
    return torch.cat([angle.sin(), angle.cos()], -1)


class Generator(nn.Module):
    """Condition, recurrence and denoiser, with all that is stored of each known base model."""

    def __init__(self, config: GeneratorConfig, known: dict[str, BaseEntry], manifest: dict):
        super().__init__()
        known = dict(sorted(known.items()))  # as JSON will hold them: tensors go by number
        types = sorted({t for base in known.values() for t in base.layout.types})
        self.config, self.manifest, self.types = config, manifest, types
        if config.joint != "none" and any(base.mixtures is None for base in known.values()):
            raise OralError(f"joint={config.joint!r}, but the generator was saved without its zoo.")
        embedding = next(iter(known.values())).structure.shape[0]
        self.known = known  # by name; registered below, because module names may hold no dot
        self.bases = nn.ModuleList(known.values())
        self.condition = Condition(embedding, config.width, config.arm)
        self.kind = nn.Embedding(len(types), config.width)
        self.enter = nn.Linear(config.width, config.width)
        self.recurrence = Recurrence(config.recurrence)
        self.denoiser = denoiser(config.denoiser, config.size, config.width)
        if config.components and config.denoiser.kind == "adanorm":
            real = max(int(base.mask.any(0).sum()) for base in known.values())
            self.denoiser.expect(max(1, real))
        self.schedule = Diffusion(config.schedule)
        whole = config.noise == "whole"
        self.whole = nn.Linear(config.size, config.width, bias=False) if whole else None

    @property
    def hears(self) -> bool:
        """Whether it reads texts: not if its training dropped them all."""
        return self.manifest.get("training", {}).get("text_dropout", 0) < 1

    # -- the three steps of the method ------------------------------------------------------------

    def conditions(self, base: str, text: Tensor, given: Tensor, c_model=None) -> Tensor:
        """c [b, m] of text embeddings [b, e] for a known base, or another c_model of its shape."""
        known = self.known[base]
        structure, fingerprint = c_model or (known.structure, known.fingerprint)
        b = text.shape[0]
        return self.condition(text, given, structure.expand(b, -1), fingerprint.expand(b, -1))

    def prototypes(self, base: str, c: Tensor) -> Tensor:
        """P [b, l, m]: the recurrent model over positions, tensor types and the condition."""
        known, m = self.known[base], self.config.width
        place = torch.cat([sinusoid(known.layer, m // 2), sinusoid(known.index, m // 2)], -1)
        u = (place + self.kind(known.kind)).unsqueeze(0) + self.enter(c).unsqueeze(1)  # [b, l, m]
        return self.recurrence(u)

    def predict(self, x: Tensor, t: Tensor, p: Tensor, c: Tensor) -> Tensor:
        """The denoiser's float32 answer [b, s, k] at x_t [b, s, k]: see `Schedule.target`."""
        if self.whole is not None:
            p = p + self.whole(self.schedule.middle(x, t))
        return self.denoiser(self.schedule.entry(x, t), t, p, c).float()

    def loss(
        self, base: str, k0: Tensor, p: Tensor, c: Tensor, chosen: Tensor, t: Tensor, eps: Tensor
    ) -> Tensor:
        """Masked mean squared error of the denoiser on a subset of the tokens of one base model.

        k0 [b, s, k] clean tokens, p [b, s, m] their prototypes, c [b, m], chosen [s] which tokens
        they are, t [b] diffusion steps, eps [b, s, k] noise; plain regression reads neither of the
        last two.
        """
        mask = self.known[base].mask[chosen]  # [s, k]
        if self.config.diffusion:
            eps = eps * mask
            x = self.schedule.add_noise(k0, eps, t)
            target, weight = self.schedule.target(k0, eps, t), self.schedule.loss_weight(t)
        else:
            t = torch.zeros_like(t)
            x, target, weight = torch.zeros_like(k0), k0, k0.new_ones(len(k0))
        error = (self.predict(x, t, p, c) - target).square() * mask
        return (error.sum((1, 2)) * weight).mean() / mask.sum()

    def _denoised(self, base: str, denoise: Callable, noise: Tensor) -> Tensor:
        """K_0 [b, l, k] from `noise`, put back among the zoo on the way and at its end."""
        known, way = self.known[base], self.config.joint
        spanned = None if way == "none" else partial(known.mixtures.nearest, way="span")
        steps = self.config.sampling_steps
        k0 = self.schedule.sample(denoise, noise * known.mask, steps, project=spanned)
        return self._among_the_zoo(base, k0)

    def _among_the_zoo(self, base: str, k0: Tensor) -> Tensor:
        way = self.config.joint
        return k0 if way == "none" else self.known[base].mixtures.nearest(k0, way)

    @torch.inference_mode()
    def sample(self, base: str, c: Tensor, c_free: Tensor | None, noise: Tensor, guidance=1.0):
        """K_0 [b, l, k] from `noise` [b, l, k]; c_free [b, m] is the condition without text."""
        mask = self.known[base].mask
        p = self.prototypes(base, c)
        if not self.config.diffusion:
            t = torch.zeros(len(c), dtype=torch.long, device=c.device)
            return self._among_the_zoo(base, self.predict(torch.zeros_like(noise), t, p, c) * mask)
        free = self.prototypes(base, c_free) if guidance != 1.0 else None

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            told = self.predict(x, t, p, c)
            if free is not None:
                untold = self.predict(x, t, free, c_free)
                told = untold + guidance * (told - untold)
            return told * mask

        return self._denoised(base, denoise, noise)

    # -- what users call --------------------------------------------------------------------------

    def generate(
        self,
        text: str,
        base: str | BaseModel,
        n: int = 1,
        seed: int = 0,
        *,
        guidance: float = 1.0,
        temperature: float | None = None,
        source: str = "packages",
        chunk: int = 16,
    ) -> list[dict[str, Tensor]]:
        """n adapters (PEFT's saved names, float32, CPU) for a task in words on a base model.

        An empty `text` asks without words. `base` is the name of a known base, or a BaseModel:
        then its own description and fingerprint are read, which is how a later version of a known
        model is served. Memory is that of `chunk` adapters. The same seed gives the same adapters.
        `temperature` is the config's unless given. Regression heeds neither seed, guidance nor
        temperature. UsageError for an unknown base, a wrong n, temperature or layout.
        """
        if n < 1:
            raise UsageError(f"n={n}: ask for at least one adapter.")
        warmth = self.config.temperature if temperature is None else temperature
        if not 0 <= warmth <= 1:
            raise UsageError(f"temperature={temperature}: must lie in [0, 1].")
        name, c, c_free = self._asked(text, base, source)
        known, stream = self.known[name], seeds.generator(seed, "sample", name)
        adapters: list[dict[str, Tensor]] = []
        for start in range(0, n, chunk):
            b = min(chunk, n - start)
            # adapter by adapter: torch would fill one tensor for all of them in another order
            noise = torch.stack([self.config.draw(known.layout.l, stream) for _ in range(b)])
            noise = warmth * noise.to(c.device)
            k0 = self.sample(name, c.expand(b, -1), c_free.expand(b, -1), noise, guidance)
            adapters += tokenization.decode(known.layout, known.statistics.denormalise(k0).cpu())
        return adapters

    @torch.inference_mode()
    def look(
        self, text: str, base: str | BaseModel, seed: int = 0, *, source: str = "packages"
    ) -> tuple[Tensor, Tensor, list[int]]:
        """What happens inside: prototypes [l, m], the tokens on their way [s + 1, l, k] from noise
        to K_0, and the diffusion step t of each state (0 for the last). UsageError where there is
        no diffusion to look at."""
        if not self.config.diffusion:
            raise UsageError("plain regression has no way from noise to weights to look at.")
        name, c, _ = self._asked(text, base, source)
        known, stream = self.known[name], seeds.generator(seed, "sample", name)
        noise = self.config.draw(known.layout.l, stream)[None].to(c.device)
        noise = self.config.temperature * noise
        p, states = self.prototypes(name, c), []

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            states.append(x[0])
            return self.predict(x, t, p, c) * known.mask

        last = self._denoised(name, denoise, noise)
        steps = [*self.schedule.timesteps(self.config.sampling_steps), 0]
        return p[0].float().cpu(), torch.stack([*states, last[0]]).cpu(), steps

    def _asked(self, text: str, base: str | BaseModel, source: str) -> tuple[str, Tensor, Tensor]:
        """(name of the known base, c [1, m], c without text [1, m])."""
        encoder = text_encoder(self.config.text_encoder, source)
        name, c_model = self._resolve(base, encoder)
        device = self.kind.weight.device
        heard = bool(text.strip()) and self.hears
        given = torch.tensor([heard], device=device)
        embedded = encoder.encode([text]) if heard else torch.zeros(1, encoder.width)
        embedded = embedded.to(device)
        c_model = c_model and tuple(part.to(device) for part in c_model)
        with torch.inference_mode():
            c = self.conditions(name, embedded, given, c_model)
            c_free = self.conditions(name, embedded, torch.zeros_like(given), c_model)
        return name, c, c_free

    def _resolve(self, base: str | BaseModel, encoder):
        """(key into `known`, c_model or None for the stored one)."""
        if isinstance(base, str):
            if base not in self.known:
                raise UsageError(
                    f"this generator does not know base model {base!r}.{closest(base, self.known)} "
                    f"It knows {', '.join(self.known)}."
                )
            return base, None
        layout = Layout.of(base.lora_init(), self.config.k)
        own_first = sorted(self.known, key=lambda name: name != base.name)
        for name in own_first:
            if self.known[name].layout == layout:
                return name, describe_base(base, encoder)
        raise UsageError(
            f"no known base model has the layout of {base.name!r} ({layout.l} tokens): train a "
            "generator on a zoo of this architecture."
        )

    # -- on disk ----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights, config.json and, last, the manifest.json that makes the folder count."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {n: v.detach().cpu().contiguous() for n, v in self.state_dict().items()}
        storage.write_tensors(folder / "generator.safetensors", state)
        bases = {
            name: {"layout": known.layout.to_json(), "peft_config": known.peft_config}
            for name, known in self.known.items()
        }
        content = {"format": FORMAT, "generator": asdict(self.config), "bases": bases}
        storage.write_json(folder / "config.json", content)
        digest = storage.sha256(folder / "generator.safetensors")
        storage.write_json(folder / "manifest.json", {**self.manifest, "sha256": digest})

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Generator":
        """The generator in `folder`, hash-checked, to generate with. PreflightError if none."""
        folder = Path(folder)
        if not (folder / "manifest.json").exists():
            raise PreflightError(
                f"no generator in {folder}: run ./reproduce.sh to train one, or name a folder that "
                "holds config.json, manifest.json and generator.safetensors."
            )
        manifest = storage.read_json(folder / "manifest.json")
        content = storage.read_json(folder / "config.json")
        file = folder / "generator.safetensors"
        try:
            if content.get("format") != FORMAT:
                raise OralError(
                    f"{folder} has format {content.get('format')!r}, this code reads {FORMAT}."
                )
            if storage.sha256(file) != manifest["sha256"]:
                raise OralError(f"{file} is damaged: its hash is not the one in manifest.json.")
            model = cls._restored(content, manifest, storage.read_tensors(file))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise OralError(
                f"config.json and manifest.json in {folder} do not describe its "
                f"generator.safetensors ({type(error).__name__}): train or download the generator "
                "again."
            ) from error
        return model.to(device).eval()

    @classmethod
    def _restored(cls, content: dict, manifest: dict, state: dict[str, Tensor]) -> "Generator":
        layouts = {n: Layout.from_json(b["layout"]) for n, b in content["bases"].items()}
        types = sorted({t for layout in layouts.values() for t in layout.types})
        known = {
            name: BaseEntry.restored(
                layout, state, f"bases.{i}", types, content["bases"][name]["peft_config"]
            )
            for i, (name, layout) in enumerate(layouts.items())
        }
        model = cls(GeneratorConfig.from_json(content["generator"]), known, manifest)
        model.load_state_dict(state)
        return model


def describe_base(base: BaseModel, encoder: TextEncoder) -> tuple[Tensor, Tensor]:
    """(structure embedding [e], fingerprint [FINGERPRINT]) of a base model: its raw c_model."""
    return encoder.encode([base.describe()])[0], base.fingerprint()


@dataclass(frozen=True)
class PromptedLora:
    """A generated adapter: tensors by PEFT's saved names, PEFT configuration and what made it."""

    tensors: dict[str, Tensor]
    config: dict
    card: peft_folder.Card

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes a standard PEFT folder with a model card and returns it."""
        return peft_folder.save(folder, self.tensors, self.config, self.card, overwrite=overwrite)


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
    spec = registry.spec(base)
    scale = scale or scales.default_scale()
    made_here = "made" if scale == "smoke" else source
    run = paths.experiment_folder(scale, made_here, experiment=spec.experiment)
    folder = Path(generator) if generator else run / "generator"
    model = Generator.from_pretrained(folder, device)
    how = {"guidance": guidance, "temperature": temperature, "source": made_here}
    made = model.generate(task, base, n, seed, **how)
    config = model.known[base].peft_config
    members = _zoo_beside(folder, model, base)
    loras = []
    for tensors in made:
        name, far = distances.nearest(tensors, members, config) if members else ("", None)
        card = peft_folder.Card(
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
        file = store.folder(folder.parent, base, task, seed) / "adapter_model.safetensors"
        if file.is_file() and storage.sha256(file) == sha256:
            members.append((f"{task}, seed {seed}", storage.read_tensors(file)))
    return members
