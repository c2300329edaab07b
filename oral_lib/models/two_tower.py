"""Two-tower models: open_clip's image and text towers, and a fusion of their features.

    v, u = the features [b, d] of image and text, of length one; d = width of the shared space
    matching:   similarity = v . u
    questions:  logits = answer(gelu(fuse([v, u, sqrt(d) v * u] sqrt(d))))   * by coordinate

The towers are open_clip's: a timm network and a Hugging Face encoder with mean pooling, each
followed by one linear projection. `alignment.py` builds such a model from two released networks;
open_clip can load its folder, too. LoRA is on both towers. `fuse` and `answer` belong to the
adapter, and a task uses the first `labels` rows of `answer`.

Letters: `b` rows of a batch, `n` rows, `d` width of the shared space.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as ENCODER_KINDS,
)

from oral_lib import seeds, storage
from oral_lib.assets import sources
from oral_lib.checkpoints.folders import MODEL_CONFIG, only, read_settings
from oral_lib.checkpoints.hugging_face import (
    check_tensors,
    check_vocabulary,
    config_settings,
    error_line,
    quiet,
    read_tokenizer,
    require_padding,
)
from oral_lib.errors import OralError, UsageError
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.models.registry import Alignment, BaseSpec
from oral_lib.models.text import attention
from oral_lib.models.vision import Backbone, architecture, preprocessing_settings
from oral_lib.tasks.rows import Row, Split, task_rows
from oral_lib.tasks.task import Task, load_task

CONFIG_FILE = "open_clip_config.json"  # open_clip's file names
WEIGHTS_FILE = "open_clip_model.safetensors"
CONTEXT = 64  # maximum tokens of a text in open_clip's tokenizer
HIDDEN = 64  # width of the fusion
HEADS = ("fuse", "answer")


class TwoTowers(nn.Module):
    """`clip` and the fusion; `forward` answers questions, matching compares the features."""

    def __init__(self, clip: CustomTextCLIP, classes: int):
        super().__init__()
        self.clip = clip
        width = clip.visual.head.proj.out_features
        self.fuse = nn.Linear(3 * width, HIDDEN)
        self.answer = nn.Linear(HIDDEN, classes)

    def image_features(self, images: Tensor) -> Tensor:
        """float32 [b, d] of length one, of normalised images [b, 3, pixels, pixels]."""
        return F.normalize(self.clip.encode_image(images).float(), dim=-1)

    def text_features(self, ids: Tensor, mask: Tensor, attention_mask: Tensor) -> Tensor:
        """float32 [b, d] of length one, of token ids and their mask [b, tokens].

        `attention_mask` is that mask in the form the attention requires. Follows
        HFTextEncoder.forward, which derives its mask from the ids and would make transformers wait
        for the device to check for padding.
        """
        text = self.clip.text
        out = text.transformer(input_ids=ids, attention_mask=attention_mask)
        return F.normalize(text.proj(text.pooler(out, mask)).float(), dim=-1)

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, attention_mask: Tensor) -> Tensor:
        """[b, classes] logits."""
        v, u = self.image_features(images), self.text_features(ids, mask, attention_mask)
        root = v.shape[-1] ** 0.5  # coordinates of unit variance
        joint = torch.cat([v, u, root * v * u], -1) * root
        return self.answer(F.gelu(self.fuse(joint)))


class Towers(Backbone):
    """A frozen `TwoTowers` with the tokenizer of its text tower.

    `scale` multiplies similarities to give logits.
    """

    reads = "images with texts"

    def __init__(self, spec: BaseSpec, model: TwoTowers, tokenizer, config: dict, scale: float):
        super().__init__(spec, model, spec.pixels, config)
        self.tokenizer, self.scale = tokenizer, scale

    @property
    def modules_to_save(self) -> list[str] | None:
        return list(HEADS)

    def describe(self) -> str:
        clip, adapted = self.model.clip, self.adapted()
        text = clip.text.config
        linear = sum(isinstance(self.model.get_submodule(n), nn.Linear) for n in adapted)
        return (
            f"A two-tower image-text model: a {type(clip.visual.trunk).__name__} with "
            f"{clip.visual.trunk.num_features} features for pictures of {self.pixels} pixels and a "
            f"{text.model_type} encoder with {text.num_hidden_layers} layers of width "
            f"{text.hidden_size}, projected into {self.width} dimensions, with a fusion of "
            f"{self.spec.classes} classes; LoRA of rank {self.spec.rank} on {linear} linear layers "
            f"and {len(adapted) - linear} convolutions, {', '.join(self.spec.targets)}."
        )

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.clip.text.transformer.get_input_embeddings()

    @property
    def width(self) -> int:
        """Width d of the shared space."""
        return self.model.clip.visual.head.proj.out_features

    def encode_rows(self, task: Task, rows: Sequence[Row]) -> EncodedRows:
        """Token rows of at most `task.max_tokens`, with their images."""
        self.scoring_kind(task)
        return self._encode_pairs(self.tokens([row.text for row in rows], task.max_tokens), rows)

    def answer_logits(self, adapted: TwoTowers, batch: EncodedRows) -> Tensor:
        images = self.normalised(batch.images[batch.image_index])
        return adapted(images, batch.ids, batch.mask, batch.attention_mask).float()

    def image_features(self, adapted: TwoTowers, batch: EncodedRows) -> Tensor:
        """float32 [b, d] of length one: the features of each row's image."""
        return adapted.image_features(self.normalised(batch.images[batch.image_index]))

    def text_features(self, adapted: TwoTowers, batch: EncodedRows) -> Tensor:
        """float32 [b, d] of length one: the features of each row's text."""
        return adapted.text_features(batch.ids, batch.mask, batch.attention_mask)

    def forward_blank(self, width: int) -> None:
        ids = torch.ones(1, width, dtype=torch.long, device=self.device)
        self.model(self.normalised(self._blank()), ids, ids, ids)

    @torch.no_grad()
    def pooled_images(self, rows: Sequence[Row], batch: int = 64) -> tuple[Tensor, Tensor]:
        """float32 [n, features] on the device, twice: the input of the image tower's projection for
        each row's image, and for its mirror image."""
        trunk, parts = self.model.clip.visual.trunk, []
        for values in self.images(rows).split(batch):
            plain = self.normalised(values)
            parts.append([trunk(side).float() for side in (plain, plain.flip(-1))])
        plain, mirrored = zip(*parts, strict=True)
        return torch.cat(plain), torch.cat(mirrored)

    @torch.no_grad()
    def pooled_texts(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """float32 [n, width] on the device: the input of the text tower's projection."""
        text, parts = self.model.clip.text, []
        for first in range(0, len(texts), batch):
            tokens = self.tokens(texts[first : first + batch])
            out = text.transformer(**tokens)
            parts.append(text.pooler(out, tokens["attention_mask"]).float())
        return torch.cat(parts)


def alignment_rows(recipe: Alignment, source: str) -> Split:
    """The rows that an alignment reads from `source`. Training rows are limited to the first
    `recipe.pictures` images. UsageError if the recipe names no task for the source."""
    kind, _ = sources.parse_source(source)
    tasks = dict(recipe.pairs)
    if kind not in tasks:
        raise UsageError(
            f"source {kind!r} has no images with texts to align towers: use {', '.join(tasks)}."
        )
    split = task_rows(load_task(tasks[kind]), source)
    first = set(list(dict.fromkeys(row.image for row in split.train))[: recipe.pictures])
    return replace(split, train=tuple(row for row in split.train if row.image in first))


@lru_cache
def digest(recipe: Alignment, source: str) -> str:
    """One hash of all pairs that an alignment reads."""
    rows = alignment_rows(recipe, source).train
    content = [(row.text, row.label, hashlib.sha256(row.image).hexdigest()) for row in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def write_config(folder: Path, spec: BaseSpec, image: Backbone, text: BaseModel) -> None:
    """Writes the description of the model of `spec` to `folder`: open_clip's settings, and the
    configuration and tokenizer of the text tower."""
    settings = image.model.pretrained_cfg
    vision = {
        "image_size": spec.pixels,
        "timm_model_name": settings["architecture"],
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    language = {
        "context_length": CONTEXT,
        "hf_model_name": ".",  # the folder itself
        "hf_tokenizer_name": ".",
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
    }
    preprocessing = {
        "mean": list(settings["mean"]),
        "std": list(settings["std"]),
        "interpolation": settings["interpolation"],
        "resize_mode": "squash",
    }
    model = {"embed_dim": spec.alignment.width, "vision_cfg": vision, "text_cfg": language}
    storage.write_json(folder / CONFIG_FILE, {"model_cfg": model, "preprocess_cfg": preprocessing})
    text.model.config.save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)


def built(folder: Path, spec: BaseSpec) -> TwoTowers:
    """The model that `folder` describes; projections and fusion are a fixed random draw."""
    width, vision, text = _tower_settings(folder)
    encoder = {MODEL_CONFIG: config_settings(folder, "text tower", ENCODER_KINDS)}
    with only((), encoder) as clean, torch.random.fork_rng(devices=[]), quiet():
        text.hf_model_name = str(clean)  # open_clip reads its config.json
        torch.manual_seed(seeds.integer(0, "towers", spec.name))
        return TwoTowers(CustomTextCLIP(width, vision, text), spec.classes)


def _tower_settings(folder: Path) -> tuple[int, CLIPVisionCfg, CLIPTextCfg]:
    """(width of the shared space, image tower, text tower) in open_clip_config.json.

    Towers are built from the settings in `folder`, never from a name on the hub.
    """
    file = folder / CONFIG_FILE
    model = read_settings(file).get("model_cfg")
    try:
        image, language = dict(model["vision_cfg"]), dict(model["text_cfg"])
        vision = CLIPVisionCfg(
            image_size=int(image["image_size"]),
            timm_model_name=architecture(image["timm_model_name"], file),
            timm_model_pretrained=False,
            timm_pool=str(image["timm_pool"]),
            timm_proj=str(image["timm_proj"]),
        )
        text = CLIPTextCfg(
            context_length=int(language["context_length"]),
            hf_model_pretrained=False,
            hf_proj_type=str(language["hf_proj_type"]),
            hf_pooler_type=str(language["hf_pooler_type"]),
        )
        return int(model["embed_dim"]), vision, text
    except (LookupError, TypeError, ValueError) as error:
        raise OralError(
            f"{file} does not describe two towers ({error_line(error)}): create the model again."
        ) from error


def from_released(folder: Path, spec: BaseSpec, image: Backbone, text: BaseModel) -> Towers:
    """The model that `folder` describes with the weights of both released networks, float32."""
    model = built(folder, spec)
    trunk, released = model.clip.visual.trunk, image.model.state_dict()
    trunk.load_state_dict({name: released[name] for name in trunk.state_dict()})
    for name, norm in trunk.named_modules():
        if isinstance(norm, nn.BatchNorm2d):  # open_clip builds with timm's default epsilon
            norm.running_var += image.model.get_submodule(name).eps - norm.eps
    encoder = model.clip.text.transformer
    encoder.load_state_dict(text.model.base_model.state_dict(), strict=False)
    return _towers(folder, spec, model.to(image.device), model.clip.logit_scale.exp().item())


def load(spec: BaseSpec, folder: Path, device: str | torch.device, dtype: torch.dtype) -> Towers:
    """The aligned model in `folder`. OralError when its weights do not fit its description."""
    model, tensors = built(folder, spec), storage.read_tensors(folder / WEIGHTS_FILE)
    check_tensors(folder, tensors, model.clip, CONFIG_FILE)
    model.clip.load_state_dict(tensors)
    scale = model.clip.logit_scale.exp().item()  # before it is rounded
    model = model.to(device)
    model.clip.to(dtype)  # the fusion reads features in float32
    for module in model.clip.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()  # bfloat16 is too coarse for its variances
    return _towers(folder, spec, model, scale)


def _towers(folder: Path, spec: BaseSpec, model: TwoTowers, scale: float) -> Towers:
    encoder = model.clip.text.transformer
    device = next(model.parameters()).device
    encoder.set_attn_implementation(attention(encoder.config, device))
    model.name_or_path = spec.hub  # PEFT writes it into adapters
    tokenizer = read_tokenizer(folder, spec.name)
    require_padding(folder, tokenizer)
    check_vocabulary(folder, tokenizer, encoder.get_input_embeddings())
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    file = folder / CONFIG_FILE
    preprocessing = preprocessing_settings(read_settings(file).get("preprocess_cfg"), file)
    return Towers(spec, model, tokenizer, preprocessing, scale)
