"""Two-tower models: open_clip's image and text towers, and a fusion of what they say.

    v, u = the features [b, d] of picture and text, of length one; d = width of the shared space
    matching:   closeness = v . u
    questions:  logits = answer(gelu(fuse([v, u, sqrt(d) v * u] sqrt(d))))   * by coordinate

The towers are open_clip's own: a timm network and a Hugging Face encoder with mean pooling, each
under one linear projection. `alignment.py` makes such a model of two released networks; its folder
is one that open_clip loads, too. LoRA sits on both towers; `fuse` and `answer` belong to the
adapter, and a task uses the first `labels` rows of `answer`.
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
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoTokenizer

from oral_lib import seeds, storage
from oral_lib.assets import sources
from oral_lib.errors import OralError, UsageError
from oral_lib.models.base import BaseModel, attention, quiet
from oral_lib.models.registry import Alignment, BaseSpec
from oral_lib.models.vision import Backbone
from oral_lib.tasks.rows import Row, Split, task_rows
from oral_lib.tasks.task import load_task

CONFIG = "open_clip_config.json"  # as open_clip calls them
WEIGHTS = "open_clip_model.safetensors"
WORDS = 64  # tokens of a text that open_clip's tokenizer keeps
HIDDEN = 64  # width of the fusion
HEADS = ("fuse", "answer")


class TwoTowers(nn.Module):
    """`clip` and the fusion; `forward` answers questions, `features` is what matching compares."""

    def __init__(self, clip: CustomTextCLIP, classes: int):
        super().__init__()
        self.clip = clip
        width = clip.visual.head.proj.out_features
        self.fuse = nn.Linear(3 * width, HIDDEN)
        self.answer = nn.Linear(HIDDEN, classes)

    def image_features(self, pictures: Tensor) -> Tensor:
        """float32 [b, d] of length one, of normalised pictures [b, 3, pixels, pixels]."""
        return F.normalize(self.clip.encode_image(pictures).float(), dim=-1)

    def text_features(self, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        """float32 [b, d] of length one, of token ids and their mask [b, tokens].

        `seen` is that mask as the attention is to have it. This is HFTextEncoder.forward, which
        derives its mask from the ids and would have transformers ask the device about padding.
        """
        text = self.clip.text
        out = text.transformer(input_ids=ids, attention_mask=seen)
        return F.normalize(text.proj(text.pooler(out, mask)).float(), dim=-1)

    def forward(self, pictures: Tensor, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        """[b, classes] logits."""
        v, u = self.image_features(pictures), self.text_features(ids, mask, seen)
        root = v.shape[-1] ** 0.5  # coordinates of unit variance
        joint = torch.cat([v, u, root * v * u], -1) * root
        return self.answer(F.gelu(self.fuse(joint)))


class Towers(Backbone):
    """A frozen `TwoTowers` with the tokenizer of its text tower.

    `scale` is what a closeness is multiplied by to give logits.
    """

    def __init__(self, spec: BaseSpec, model: TwoTowers, tokenizer, seen: dict, scale: float):
        super().__init__(spec, model, spec.pixels, seen)
        self.tokenizer, self.scale = tokenizer, scale

    def peft_config(self) -> LoraConfig:
        """The LoRA on both towers that every adapter has, the fusion beside it."""
        return LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha,
            lora_dropout=0.0,
            target_modules=list(self.spec.targets),
            modules_to_save=list(HEADS),
            base_model_name_or_path=self.spec.hub,
        )

    def describe(self) -> str:
        """The structure in words: both towers, sizes, adapted modules. Never the model's name."""
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
    def width(self) -> int:
        """Of the space that both towers end in."""
        return self.model.clip.visual.head.proj.out_features

    @torch.no_grad()
    def pooled_pictures(self, rows: Sequence[Row], batch: int = 64) -> tuple[Tensor, Tensor]:
        """float32 [n, features] on the device: what the image tower hands to its projection, of
        each row's picture and of its mirror image."""
        trunk, parts = self.model.clip.visual.trunk, []
        for some in self.pictures(rows).split(batch):
            plain = self.normalised(some)
            parts.append([trunk(side).float() for side in (plain, plain.flip(-1))])
        shown, mirrored = zip(*parts, strict=True)
        return torch.cat(shown), torch.cat(mirrored)

    @torch.no_grad()
    def pooled_texts(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """float32 [n, width] on the device: what the text tower hands to its projection."""
        text, parts = self.model.clip.text, []
        for first in range(0, len(texts), batch):
            read = self.tokens(list(texts[first : first + batch]))
            out = text.transformer(**read)
            parts.append(text.pooler(out, read["attention_mask"]).float())
        return torch.cat(parts)


def pairs(recipe: Alignment, source: str) -> Split:
    """The rows of the task whose pictures and texts `source` offers for it; of its training rows
    those of the first pictures. UsageError where there is no such task."""
    kind, _ = sources.parse_source(source)
    known = dict(recipe.pairs)
    if kind not in known:
        raise UsageError(
            f"no pictures with texts to align towers in source {kind!r}: use {', '.join(known)}."
        )
    split = task_rows(load_task(known[kind]), source)
    first = set(list(dict.fromkeys(row.image for row in split.train))[: recipe.pictures])
    return replace(split, train=tuple(row for row in split.train if row.image in first))


@lru_cache
def digest(recipe: Alignment, source: str) -> str:
    """One hash of all pairs that an alignment reads."""
    rows = pairs(recipe, source).train
    told = [(row.text, row.label, hashlib.sha256(row.image).hexdigest()) for row in rows]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def write_config(folder: Path, spec: BaseSpec, image: Backbone, text: BaseModel) -> None:
    """What describes the model of `spec` in `folder`: open_clip's settings, the text tower's own
    and its tokenizer."""
    shown = image.model.pretrained_cfg
    vision = {
        "image_size": spec.pixels,
        "timm_model_name": shown["architecture"],
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    told = {
        "context_length": WORDS,
        "hf_model_name": ".",  # the folder itself
        "hf_tokenizer_name": ".",
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
    }
    seen = {
        "mean": list(shown["mean"]),
        "std": list(shown["std"]),
        "interpolation": shown["interpolation"],
        "resize_mode": "squash",
    }
    model = {"embed_dim": spec.alignment.width, "vision_cfg": vision, "text_cfg": told}
    storage.write_json(folder / CONFIG, {"model_cfg": model, "preprocess_cfg": seen})
    text.model.config.save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)


def built(folder: Path, spec: BaseSpec) -> TwoTowers:
    """The model that `folder` describes, its projections and fusion a fixed draw."""
    told = storage.read_json(folder / CONFIG)["model_cfg"]
    vision, text = CLIPVisionCfg(**told["vision_cfg"]), CLIPTextCfg(**told["text_cfg"])
    text.hf_model_name = str(folder)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seeds.integer(0, "towers", spec.name))
        return TwoTowers(CustomTextCLIP(told["embed_dim"], vision, text), spec.classes)


def joined(folder: Path, spec: BaseSpec, image: Backbone, text: BaseModel) -> Towers:
    """The model that `folder` describes with the weights of both released networks, float32."""
    model = built(folder, spec)
    trunk, released = model.clip.visual.trunk, image.model.state_dict()
    trunk.load_state_dict({name: released[name] for name in trunk.state_dict()})
    for name, norm in trunk.named_modules():
        if isinstance(norm, nn.BatchNorm2d):  # open_clip builds with timm's own epsilon
            norm.running_var += image.model.get_submodule(name).eps - norm.eps
    encoder = model.clip.text.transformer
    encoder.load_state_dict(text.model.base_model.state_dict(), strict=False)
    return _placed(folder, spec, model.to(image.device), model.clip.logit_scale.exp().item())


def load(spec: BaseSpec, folder: Path, device: str | torch.device, dtype: torch.dtype) -> Towers:
    """The aligned model in `folder`. OralError when the weights are not those that it describes."""
    model, held = built(folder, spec), storage.read_tensors(folder / WEIGHTS)
    if odd := sorted(held.keys() ^ model.clip.state_dict().keys()):
        raise OralError(
            f"{folder} holds another model than {CONFIG} says: {odd[0]!r} does not fit."
        )
    model.clip.load_state_dict(held)
    scale = model.clip.logit_scale.exp().item()  # before it is rounded
    model = model.to(device)
    model.clip.to(dtype)  # the fusion reads features in float32
    for module in model.clip.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()  # its variances span more than bfloat16 can tell apart
    return _placed(folder, spec, model, scale)


def _placed(folder: Path, spec: BaseSpec, model: TwoTowers, scale: float) -> Towers:
    encoder = model.clip.text.transformer
    device = next(model.parameters()).device
    encoder.set_attn_implementation(attention(encoder.config, device))
    model.name_or_path = spec.hub  # what PEFT writes into adapters
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    seen = storage.read_json(folder / CONFIG)["preprocess_cfg"]
    return Towers(spec, model, tokenizer, seen, scale)
