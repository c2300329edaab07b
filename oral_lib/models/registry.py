"""The base models by name: where they come from, which modules LoRA adapts, which version they are.

Adding a model is one entry here, and one line of `assets` that names the origin of its weights.
Nothing here imports torch.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from oral_lib.assets import sources
from oral_lib.errors import UsageError, closest


@dataclass(frozen=True)
class Evolution:
    """How each version is trained from the one before: all weights, further on text.

    `texts` are sets from packages, without test rows of any task; "made" is for the smoke scale.
    Version t reads the t-th stretch of `steps * batch` rows, in an order set by `seed`.
    """

    texts: tuple[str, ...] = ("news_editorials", "parables")
    steps: int = 50  # a version
    batch: int = 4  # rows
    length: int = 128  # tokens of a row
    lr: float = 1e-4  # of AdamW, without weight decay
    warmup: float = 0.1  # share of the steps before `lr` is reached; then linear decay to 0
    clip: float = 1.0
    held_out: int = 32  # rows for the perplexity; no version reads them
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and not value:
                raise UsageError(f"evolution: {name} must be positive, got {value!r}.")


@dataclass(frozen=True)
class Alignment:
    """How a two-tower model is trained from two others: see `alignment.py`.

    `pairs` names, for each source, the task whose training rows are read. Learning rate, decay and
    dropout were chosen on held-out images of the training rows of flickr8k.
    """

    image: str  # the base model whose network becomes the image tower
    text: str  # and the text tower
    pairs: tuple[tuple[str, str], ...]
    pictures: int = 250  # images of the training rows; few, so that adapters have more to learn
    width: int = 128  # of the shared space
    steps: int = 300
    batch: int = 128  # images, with one text each
    lr: float = 1e-3  # of AdamW
    decay: float = 1.0  # weight decay of the projections
    dropout: float = 0.3  # of the features that a projection reads
    warmup: float = 0.1  # share of the steps before `lr` is reached; then linear decay to 0
    seed: int = 0


@dataclass(frozen=True)
class BaseSpec:
    """The entry of a base model; without an `asset` it is tiny and random, for the smoke scale."""

    name: str
    family: str
    asset: str | None
    hub: str  # the base model's name in the files of its adapters
    targets: tuple[str, ...]
    rank: int = 8
    alpha: int = 16
    version: str = "t0"  # t0 is the released model
    parent: str | None = None  # the version before, from which this one is trained
    evolution: Evolution | None = None
    alignment: Alignment | None = None
    pixels: int = 0  # side of a backbone's images; 0: the size it was trained on
    classes: int = 0  # rows of a backbone's head; a task uses the first

    @property
    def experiment(self) -> str:
        """The experiment that the model takes part in (`scales.EXPERIMENT_NAMES`)."""
        if self.family == "vision-language":
            return "multimodal"
        if self.family == "diffusion":
            return "style"
        if self.name.endswith(ALL_LINEARS):
            return "intents"
        if self.family not in ("vision", "multimodal"):
            return "language"
        return "unseen" if self.name.endswith(YES_NO) else self.family


ALL_LINEARS = "-all"  # ends the names of language models with LoRA on all linear layers
YES_NO = "-yes-no"  # ends the names of backbones with a head of two classes
BERT_LINEARS = ("query", "key", "value", "dense")
CLASSES = 43  # maximum over all image tasks
LITES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
LITE_CONVS = ("conv_pw", "conv_pwl", "conv_head")  # all but the depthwise and the first
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # of diffusers' attention
VIT_LINEARS = ("qkv", "proj", "fc1", "fc2")
LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _encoder(name: str, hub: str) -> BaseSpec:
    return BaseSpec(name, "encoder", name, hub, targets=("query", "value"))


def _causal(name: str) -> BaseSpec:
    return BaseSpec(name, "causal", name, sources.HUB[name][0], targets=("q_proj", "v_proj"))


def _all_linears(base: BaseSpec) -> BaseSpec:
    """The same causal model, from the same files, with LoRA on all linear layers of its blocks."""
    return replace(base, name=f"{base.name}{ALL_LINEARS}", targets=LLAMA_LINEARS)


def _backbone(name: str, hub: str, targets: tuple[str, ...], pixels: int = 0) -> BaseSpec:
    return BaseSpec(name, "vision", name, hub, targets, pixels=pixels, classes=CLASSES)


def _yes_no(base: BaseSpec) -> BaseSpec:
    """The same backbone for binary tasks, with a head of two classes."""
    name = f"{base.name}{YES_NO}"
    return replace(base, name=name, hub=name if base.asset is None else base.hub, classes=2)


def _tiny(name: str, targets: tuple[str, ...]) -> BaseSpec:
    return BaseSpec(name, "vision", None, name, targets, rank=4, alpha=8, pixels=32, classes=10)


def _versions(base: BaseSpec, evolution: Evolution, last: int) -> Iterator[BaseSpec]:
    """`base` and its versions t1 to t<last>, which are on no hub."""
    yield base
    parent = base.name
    for t in range(1, last + 1):
        name = f"{base.name}-t{t}"
        yield replace(
            base, name=name, hub=name, version=f"t{t}", parent=parent, evolution=evolution
        )
        parent = name


_LISTED = (
    _encoder("minilm-l6", "sentence-transformers/all-MiniLM-L6-v2"),
    *_versions(_causal("smollm2-135m"), Evolution(), 4),
    _all_linears(_causal("smollm2-135m")),
    _encoder("minilm-l3", "sentence-transformers/paraphrase-MiniLM-L3-v2"),
    *map(_causal, ("gemma-3-270m", "qwen2.5-0.5b", "llama-3.2-1b")),
    # all tasks but the solar cells have images of at most 128 pixels a side
    *(_backbone(name, name, LITE_CONVS, 128) for name in LITES),  # these weights are on no hub
    _yes_no(_backbone(LITES[0], LITES[0], LITE_CONVS, 128)),
    _backbone("vit-tiny", sources.HUB["vit-tiny"][0], VIT_LINEARS),
    _backbone("convnext-atto", sources.HUB["convnext-atto"][0], ("fc1", "fc2"), 128),
    BaseSpec(
        "towers",
        "multimodal",
        None,
        "towers",  # on no hub: it combines two models
        ("query", "value", *LITE_CONVS, "proj"),
        alignment=Alignment(
            "efficientnet-lite0",
            "minilm-l6",
            (("packages", "easy_vqa_labels"), ("local", "flickr8k")),
        ),
        pixels=160,
        classes=13,
    ),
    # the scale `paper`: planned, not run
    *map(_causal, ("mistral-7b", "llama-2-7b", "llama-3.1-8b", "gemma-2-9b", "qwen2.5-7b")),
    BaseSpec(
        "qwen2-vl-7b",
        "vision-language",
        "qwen2-vl-7b",
        sources.HUB["qwen2-vl-7b"][0],
        LLAMA_LINEARS,
        pixels=280,  # 100 tokens of an image
    ),
    BaseSpec(
        "sd-2.1",
        "diffusion",
        "sd-2.1",
        sources.HUB["sd-2.1"][0],
        _PROJECTIONS,
    ),
    BaseSpec("tiny-diffusion", "diffusion", None, "tiny-diffusion", _PROJECTIONS, rank=4, alpha=8),
    BaseSpec("tiny-encoder", "encoder", None, "tiny-encoder", BERT_LINEARS, rank=4, alpha=8),
    _tiny("tiny-convnet", ("conv_exp", *LITE_CONVS)),
    _tiny("tiny-vit", VIT_LINEARS),
    _yes_no(_tiny("tiny-convnet", ("conv_exp", *LITE_CONVS))),
    BaseSpec(
        "tiny-towers",
        "multimodal",
        None,
        "tiny-towers",
        ("query", "value", "conv_pw", "conv_pwl", "proj"),
        4,
        8,
        alignment=Alignment(
            "tiny-convnet",
            "tiny-encoder",
            (("made", "easy_vqa_labels"),),
            width=32,
            steps=150,
            batch=32,
            lr=1e-2,
            decay=0.1,
        ),
        pixels=32,
        classes=13,
    ),
    BaseSpec(
        *("tiny-vision-language", "vision-language", None, "tiny-vision-language"),
        LLAMA_LINEARS,
        rank=4,
        alpha=8,
        pixels=16,
    ),
    *_versions(
        BaseSpec("tiny-causal", "causal", None, "tiny-causal", LLAMA_LINEARS, rank=4, alpha=8),
        Evolution(("made",), steps=20, batch=8, length=32, lr=3e-3, held_out=16),
        2,
    ),
)
REGISTRY = {entry.name: entry for entry in _LISTED}


def spec(name: str) -> BaseSpec:
    """The registry entry of `name`; UsageError, with the nearest name, for an unknown one."""
    if name not in REGISTRY:
        raise UsageError(
            f"unknown base model {name!r}.{closest(name, REGISTRY)} Known: {', '.join(REGISTRY)}."
        )
    return REGISTRY[name]


def by_hub(hub: str) -> BaseSpec | None:
    """The first entry whose name in the files of adapters is `hub`; None for other models.

    >>> by_hub("HuggingFaceTB/SmolLM2-135M").name
    'smollm2-135m'
    """
    return next((entry for entry in _LISTED if entry.hub == hub), None)


def origin(entry: BaseSpec) -> str:
    """The name in the files of adapters of the model that the versions of `entry` began with."""
    while entry.parent:
        entry = REGISTRY[entry.parent]
    return entry.hub


def lineage(name: str) -> list[BaseSpec]:
    """The versions that lead to `name`, oldest first: the released model, ..., `name`."""
    entry = spec(name)
    return [*(lineage(entry.parent) if entry.parent else ()), entry]


def root(entry: BaseSpec) -> BaseSpec:
    """The released model of which `entry` is a version."""
    return root(spec(entry.parent)) if entry.parent else entry


def in_reach(name: str, source: str = "packages") -> bool:
    """Whether `source` offers base model `name`, or the model that a version is trained from."""
    first = lineage(name)[0]
    if recipe := first.alignment:
        kind, _ = sources.parse_source(source)
        towers = in_reach(recipe.image, source) and in_reach(recipe.text, source)
        return bool(sources.local_model(name, source)) or (towers and kind in dict(recipe.pairs))
    if first.asset is None or sources.local_model(name, source):
        return True
    return sources.offers(first.asset, source)


def names(source: str = "packages", experiment: str = "") -> list[str]:
    """The released base models that `source` offers, tiny random models included; with `experiment`
    only the models of that experiment."""
    return [
        name
        for name, entry in REGISTRY.items()
        if not entry.parent and experiment in ("", entry.experiment) and in_reach(name, source)
    ]
