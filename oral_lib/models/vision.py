"""Image backbones: a frozen timm model under LoRA on its linear layers and convolutions.

The head belongs to the adapter: `classes` rows, of which a task uses the first. So all tasks of a
backbone have one layout, whatever the number of their classes. Depthwise convolutions carry no
LoRA, and BatchNorm always normalises by what it learned before (eval mode, float32).
"""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from peft import LoraConfig
from timm.data import resolve_data_config
from torch import Tensor, nn

from oral_lib import seeds, storage
from oral_lib.errors import OralError
from oral_lib.models.base import BaseModel
from oral_lib.models.registry import YES_NO, BaseSpec
from oral_lib.tasks import images
from oral_lib.tasks.rows import Row

TINY = {"tiny-convnet": "test_efficientnet", "tiny-vit": "test_vit"}  # of timm, made on the spot
KEPT = 4  # sets of pictures that stay on the device


class Backbone(BaseModel):
    """A timm model; `pixels` is the side of its pictures, `classes` the rows of its head."""

    def __init__(self, spec: BaseSpec, model: nn.Module, pixels: int, config: dict | None = None):
        super().__init__(spec, model, None, labels=spec.classes)
        config = config or resolve_data_config(model=model)
        self.pixels, self.interpolation = pixels, config["interpolation"]
        self.mean, self.std = (
            torch.tensor(config[name], device=self.device).view(3, 1, 1) for name in ("mean", "std")
        )
        self._pictures: dict[tuple[str, ...], Tensor] = {}

    @property
    def head(self) -> str:
        """The name of the linear layer that gives the classes."""
        return self.model.pretrained_cfg["classifier"]

    def peft_config(self) -> LoraConfig:
        """The LoRA that every adapter of this backbone has, the head beside it."""
        return LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha,
            lora_dropout=0.0,
            target_modules=list(self.spec.targets),
            modules_to_save=[self.head],
            base_model_name_or_path=self.spec.hub,
        )

    def describe(self) -> str:
        """The structure in words: architecture, sizes, adapted modules. Never the model's name."""
        adapted = [self.model.get_submodule(name) for name in self.adapted()]
        linear = sum(isinstance(module, nn.Linear) for module in adapted)
        return (
            f"An image classifier of the {type(self.model).__name__} architecture with "
            f"{self.weights} weights, {self.model.num_features} features and {self.spec.classes} "
            f"classes, for pictures of {self.pixels} pixels; LoRA of rank {self.spec.rank} on "
            f"{linear} linear layers and {len(adapted) - linear} convolutions, "
            f"{', '.join(self.spec.targets)}."
        )

    def adapted(self) -> dict[str, Tensor]:
        """The weights that LoRA adapts as matrices [out, in * kernel], by module name."""
        named = self.model.named_modules()
        found = {
            name: module.weight.detach().flatten(1)
            for name, module in named
            if isinstance(module, nn.Linear | nn.Conv2d)
            and name.rsplit(".", 1)[-1] in self.spec.targets
        }
        if not found:
            raise OralError(
                f"{self.name!r} has no plain layers {', '.join(self.spec.targets)}: leave "
                "`attach` before you read its weights."
            )
        return found

    def pictures(self, rows: Sequence[Row]) -> Tensor:
        """uint8 [n, 3 * pixels * pixels] on the device: decoded and resized once, then kept."""
        key = tuple(row.key for row in rows)
        if key not in self._pictures:
            table = images.decode([row.image for row in rows], self.pixels, self.interpolation)
            while len(self._pictures) >= KEPT:
                self._pictures.pop(next(iter(self._pictures)))
            self._pictures[key] = table.flatten(1).to(self.device)
        return self._pictures[key]

    def shown(self, rows: Sequence[Row]) -> Tensor:
        """uint8 [n, pixels, pixels, 3] on the CPU: the pictures as people see them."""
        table = self.pictures(rows).view(-1, 3, self.pixels, self.pixels)
        return table.permute(0, 2, 3, 1).cpu()

    def normalised(self, pictures: Tensor) -> Tensor:
        """[b, 3, pixels, pixels] as the model reads them, of bytes [b, 3 * pixels * pixels]."""
        scaled = pictures.view(-1, 3, self.pixels, self.pixels).float().div(255)
        return ((scaled - self.mean) / self.std).to(next(self.model.parameters()).dtype)

    @torch.inference_mode()
    def features(self, rows: Sequence[Row], batch: int = 64) -> Tensor:
        """float32 [n, features] on the CPU: what the head reads of the frozen model."""
        parts = []
        for some in self.pictures(rows).split(batch):
            states = self.model.forward_features(self.normalised(some))
            parts.append(self.model.forward_head(states, pre_logits=True).float().cpu())
        return torch.cat(parts)


def load(spec: BaseSpec, folder: Path | None, device: str | torch.device, dtype: torch.dtype):
    """The backbone in `folder` (config.json as timm writes it, model.safetensors); made on the
    spot where that is None. OralError when the weights are not those of its architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, "tiny", spec.name))
        if folder is None:
            name = spec.name.removesuffix(YES_NO)
            sizes = {"img_size": spec.pixels} if "vit" in name else {}
            model = timm.create_model(TINY[name], num_classes=spec.classes, **sizes)
        else:
            model = _restored(spec, folder)
    model.name_or_path = spec.hub  # what PEFT writes into adapters
    model = model.to(device=device, dtype=dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()  # its variances span more than bfloat16 can tell apart
    pixels = spec.pixels or model.pretrained_cfg["input_size"][-1]
    return Backbone(spec, model, pixels)


def _restored(spec: BaseSpec, folder: Path) -> nn.Module:
    config = storage.read_json(folder / "config.json")
    about = {k: v for k, v in config["pretrained_cfg"].items() if k != "num_classes"}
    model = timm.create_model(
        config["architecture"],
        num_classes=spec.classes,
        pretrained_cfg=about,
        **config.get("model_args", {}),
    )
    state = storage.read_tensors(folder / "model.safetensors")
    head = {n: v for n, v in model.state_dict().items() if n.startswith(about["classifier"])}
    try:
        model.load_state_dict(state | head)  # the head of another task is none: adapters bring it
    except RuntimeError as error:
        raise OralError(
            f"{folder} holds no {config['architecture']}: its weights are those of another model."
        ) from error
    return model
