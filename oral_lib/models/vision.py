"""Image backbones: a frozen timm model under LoRA on its linear layers and convolutions.

The head belongs to the adapter. It has `classes` rows, and a task uses the first of them, so all
tasks of a backbone have one layout, whatever their number of classes. Depthwise convolutions carry
no LoRA. BatchNorm normalises by its stored statistics (eval mode, float32).

Letters: `b` rows of a batch, `n` rows of a task.
"""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from PIL.Image import Resampling
from timm.data import resolve_data_config
from torch import Tensor, nn

from oral_lib import seeds, storage
from oral_lib.checkpoints.folders import MODEL_CONFIG, read_settings
from oral_lib.checkpoints.hugging_face import CONFIG_FAULTS, check_tensors, error_line
from oral_lib.errors import OralError, UsageError
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.models.registry import YES_NO, BaseSpec
from oral_lib.tasks import images
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import Task

TINY = {"tiny-convnet": "test_efficientnet", "tiny-vit": "test_vit"}  # timm's, random weights
CACHED = 4  # sets of images that stay on the device
IMAGES = {"cpu": 64, "cuda": 4096}  # read in one batch, by device


class Backbone(BaseModel):
    """A timm model; `pixels` is the side of its images."""

    reads = "images"
    layers = (nn.Linear, nn.Conv2d)

    def __init__(self, spec: BaseSpec, model: nn.Module, pixels: int, config: dict | None = None):
        super().__init__(spec, model, None, labels=spec.classes)
        config = config or resolve_data_config(model=model)
        self.pixels, self.interpolation = pixels, config["interpolation"]
        self.mean, self.std = (
            torch.tensor(config[name], device=self.device).view(3, 1, 1) for name in ("mean", "std")
        )
        self._images: dict[tuple[str, ...], Tensor] = {}

    @property
    def head(self) -> str:
        """The name of the linear layer that outputs the classes."""
        return self.model.pretrained_cfg["classifier"]

    @property
    def modules_to_save(self) -> list[str] | None:
        return [self.head]

    def describe(self) -> str:
        adapted = [self.model.get_submodule(name) for name in self.adapted()]
        linear = sum(isinstance(module, nn.Linear) for module in adapted)
        return (
            f"An image classifier of the {type(self.model).__name__} architecture with "
            f"{self.weights} weights, {self.model.num_features} features and {self.spec.classes} "
            f"classes, for pictures of {self.pixels} pixels; LoRA of rank {self.spec.rank} on "
            f"{linear} linear layers and {len(adapted) - linear} convolutions, "
            f"{', '.join(self.spec.targets)}."
        )

    # ------------------------------------------------------------ tasks
    def scoring_kind(self, task: Task) -> str:
        kind = super().scoring_kind(task)
        if kind == "image" and len(task.labels) > self.spec.classes > 0:
            raise UsageError(
                f"task {task.name!r} has {len(task.labels)} labels, and the head of {self.name!r} "
                f"{self.spec.classes} classes: choose another base model."
            )
        return kind

    def encode_rows(self, task: Task, rows: Sequence[Row]) -> EncodedRows:
        self.scoring_kind(task)
        return EncodedRows.of_equal_length(self.images(rows))

    def answer_logits(self, adapted: nn.Module, batch: EncodedRows) -> Tensor:
        return adapted(self.normalised(batch.ids)).float()

    def batch_size(self, task: Task, groups: int = 1) -> int:
        return max(1, IMAGES[self.device.type] // groups)

    def forward_blank(self, width: int) -> None:
        self.model(self.normalised(self._blank()))

    def _blank(self) -> Tensor:
        return torch.zeros(1, 3 * self.pixels**2, device=self.device)

    def _encode_pairs(self, batch: dict[str, Tensor], rows: Sequence[Row]) -> EncodedRows:
        """Token rows `batch` with the images of `rows`; rows that share an image store it once."""
        lengths = batch["attention_mask"].sum(1)
        numbers: dict[bytes, int] = {}
        index = [numbers.setdefault(row.image, len(numbers)) for row in rows]
        by_number = dict(zip(index, rows, strict=True))
        table = self.images([by_number[n] for n in range(len(numbers))])
        index = torch.tensor(index, device=self.device)
        return EncodedRows(batch["input_ids"], lengths, lengths, image_index=index, images=table)

    # ------------------------------------------------------------ images
    def images(self, rows: Sequence[Row]) -> Tensor:
        """uint8 [n, 3 * pixels * pixels] on the device: decoded and resized once, then cached."""
        key = tuple(row.key for row in rows)
        if key not in self._images:
            table = images.decode_images(
                [row.image for row in rows], self.pixels, self.interpolation
            )
            while len(self._images) >= CACHED:
                self._images.pop(next(iter(self._images)))
            self._images[key] = table.flatten(1).to(self.device)
        return self._images[key]

    def display_images(self, rows: Sequence[Row]) -> Tensor:
        """uint8 [n, pixels, pixels, 3] on the CPU: the images in the layout of plotting tools."""
        table = self.images(rows).view(-1, 3, self.pixels, self.pixels)
        return table.permute(0, 2, 3, 1).cpu()

    def normalised(self, values: Tensor) -> Tensor:
        """[b, 3, pixels, pixels] as the model reads them, of bytes [b, 3 * pixels * pixels]."""
        scaled = values.view(-1, 3, self.pixels, self.pixels).float().div(255)
        return ((scaled - self.mean) / self.std).to(next(self.model.parameters()).dtype)

    @torch.inference_mode()
    def features(self, rows: Sequence[Row], batch: int = 64) -> Tensor:
        """float32 [n, features] on the CPU: the input of the head, from the frozen model."""
        parts = []
        for values in self.images(rows).split(batch):
            states = self.model.forward_features(self.normalised(values))
            parts.append(self.model.forward_head(states, pre_logits=True).float().cpu())
        return torch.cat(parts)


def load(
    spec: BaseSpec, folder: Path | None, device: str | torch.device, dtype: torch.dtype
) -> Backbone:
    """The backbone in `folder` (timm's config.json, model.safetensors); a tiny random one if that
    is None. OralError when files are damaged or of another model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, "tiny", spec.name))
        if folder is None:
            name = spec.name.removesuffix(YES_NO)
            sizes = {"img_size": spec.pixels} if "vit" in name else {}
            model = timm.create_model(TINY[name], num_classes=spec.classes, **sizes)
        else:
            model = _restored(spec, folder)
    model.name_or_path = spec.hub  # PEFT writes it into adapters
    model = model.to(device=device, dtype=dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()  # bfloat16 is too coarse for its variances
    pixels = spec.pixels or model.pretrained_cfg["input_size"][-1]
    return Backbone(spec, model, pixels)


def _restored(spec: BaseSpec, folder: Path) -> nn.Module:
    file = folder / MODEL_CONFIG
    config = read_settings(file)
    name = architecture(config.get("architecture"), file)
    settings = preprocessing_settings(config.get("pretrained_cfg"), file)
    options = _model_settings(config.get("model_args"), file)
    try:
        model = timm.create_model(
            name, pretrained=False, num_classes=spec.classes, pretrained_cfg=settings, **options
        )
    except CONFIG_FAULTS as error:
        raise OralError(
            f"{file} does not fit timm's {name} ({error_line(error)}): use timm's file."
        ) from error
    head = settings.get("classifier", "")
    if not isinstance(dict(model.named_modules()).get(head), nn.Linear):
        raise OralError(f"{file}: classifier {head!r} is not the head of {name}: use timm's file.")
    tensors = storage.read_tensors(folder / "model.safetensors")
    # the head in the file is another task's: adapters bring their own
    tensors |= {n: v for n, v in model.state_dict().items() if n.startswith(f"{head}.")}
    check_tensors(folder, tensors, model, f"architecture {name} in config.json")
    model.load_state_dict(tensors)
    return model


# ---------------------------------------------------------------- settings of a folder
# Of a released config.json only these settings reach timm; others may name files and addresses.
PREPROCESSING = {  # name -> what its value is
    "mean": "three numbers",
    "std": "three numbers above 0",
    "input_size": "three sizes",
    "interpolation": "a method",
    "crop_pct": "a number",
    "classifier": "the name of a layer",
    "fixed_input_size": "true or false",
}
OPTIONAL = ("input_size", "crop_pct", "classifier", "fixed_input_size")
MODEL_SETTINGS = (  # of layers, which weights do not show
    *("bn_eps", "bn_momentum", "drop_rate", "drop_path_rate", "dynamic_img_size", "global_pool"),
    *("img_size", "patch_size"),
)


def architecture(name: object, file: Path) -> str:
    """`name`, an architecture of timm. OralError for any other name, such as one on the hub."""
    if not isinstance(name, str) or not timm.is_model(name) or ":" in name or "/" in name:
        raise OralError(
            f"{file} names the architecture {name!r}, unknown to timm {timm.__version__}: use a "
            "model that it has."
        )
    return name


def preprocessing_settings(content: object, file: Path) -> dict:
    """The settings of images and head in `content`, of the JSON `file`.

    OralError if one is missing or of another form.
    """
    if not isinstance(content, dict):
        raise OralError(f"{file} does not describe how images are read: use the released file.")
    settings = {}
    for key, form in PREPROCESSING.items():
        value = content.get(key)
        if value is None and key in OPTIONAL:
            continue
        if not _is_of_form(form, value):
            raise OralError(
                f"{file}: {key} is {value!r}, and must be {form}: use the released file."
            )
        settings[key] = value
    return settings


def _is_of_form(form: str, value: object) -> bool:
    if form == "three numbers":
        return _is_list(value, (int, float)) and all(-1e3 < x < 1e3 for x in value)
    if form == "three numbers above 0":
        return _is_list(value, (int, float)) and all(1e-6 < x < 1e3 for x in value)
    if form == "three sizes":
        return _is_list(value, int) and all(0 < x < 1 << 14 for x in value)
    if form == "true or false":
        return isinstance(value, bool)
    if form == "a number":
        return type(value) in (int, float)
    if form == "a method":
        return isinstance(value, str) and value.upper() in Resampling.__members__
    return isinstance(value, str) and bool(value)


def _is_list(value: object, kinds) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(x, kinds) and not isinstance(x, bool) for x in value)
    )


def _model_settings(content: object, file: Path) -> dict:
    """The settings of layers in `content`; OralError for settings that are not known."""
    if not isinstance(content, dict | None):
        raise OralError(f"{file}: model_args is {content!r}, and must be settings by name.")
    for key, value in (content or {}).items():
        values = value if isinstance(value, list) else [value]
        plain = all(
            isinstance(x, str) or (isinstance(x, int | float) and 0 <= x < 1 << 14) for x in values
        )
        if key not in (*MODEL_SETTINGS, "num_classes") or not plain:
            raise OralError(
                f"{file}: model_args has {key} = {value!r}; known settings are "
                f"{', '.join(MODEL_SETTINGS)}: remove it."
            )
    return {key: value for key, value in (content or {}).items() if key in MODEL_SETTINGS}
