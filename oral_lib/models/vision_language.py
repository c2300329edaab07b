"""Vision-language models: Qwen2-VL, which reads a picture as tokens in front of a question.

    row = before, picture x places, after, question, choices, the turn of the assistant
    answer: the likelihood of each label word's first token, as of a causal language model

All pictures have one size, and the picture stands at one place of every row. So a row's tokens at
the picture are always the same columns, rows need no mask, and the positions of a column (of time,
height and width: M-RoPE) are those of every row. What is in the picture enters as bytes; order and
normalisation of its patches are those of transformers' image processor, the words around it those
of the model's chat template. LoRA sits on the language model, the image tower is frozen.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AttentionInterface,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)
from transformers.vision_utils import get_vision_position_ids

from oral_lib import seeds, storage
from oral_lib.errors import OralError
from oral_lib.models.base import attention, check_fit, reading
from oral_lib.models.registry import BaseSpec
from oral_lib.models.vision import Backbone

MARK = "<question>"  # where the chat template puts a text
CHOICES = " Answer with one of these words: {}."
LONGEST = 1024  # tokens of a row beside the picture
CHAT = (  # of the tiny model: ChatML, as Qwen2-VL's own
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")


class VisionLanguage(Backbone):
    """A frozen Qwen2-VL with its tokenizer; `places` is how many tokens a picture takes.

    OralError when its chat template has no one place for a picture before a question, or when
    pictures are cut into other patches than the model reads.
    """

    def __init__(
        self,
        spec: BaseSpec,
        model: Qwen2VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        processor: Qwen2VLImageProcessor,
    ):
        try:
            seen = {
                "interpolation": Resampling(processor.resample).name,
                "mean": [float(x) for x in processor.image_mean],
                "std": [float(x) for x in processor.image_std],
            }
        except (TypeError, ValueError) as error:
            raise OralError(
                f"{spec.name}: preprocessor_config.json gives pictures no interpolation, mean or "
                "std that can be used: take it as it was released."
            ) from error
        super().__init__(spec, model, spec.pixels, seen)
        self.tokenizer = tokenizer
        cut = (processor.patch_size, processor.temporal_patch_size, processor.merge_size)
        image = model.config.vision_config
        read = (image.patch_size, image.temporal_patch_size, image.spatial_merge_size)
        if cut != read or spec.pixels % (image.patch_size * image.spatial_merge_size):
            raise OralError(
                f"{spec.name}: preprocessor_config.json cuts pictures of {spec.pixels} pixels into "
                f"patches of {cut}, and config.json says {read}: take both as they were released."
            )
        self.order, self.grid = _patches(processor, spec.pixels)
        self.places = int(self.grid.prod()) // processor.merge_size**2
        self.order = self.order.to(self.device)
        self.before, self.after = self._chat()
        self.around = len(self.before) + len(self.after)
        self.first = self.before.index(model.config.image_token_id)
        row = torch.tensor([self.before + [0] * LONGEST])
        kinds = (row == model.config.image_token_id).int()
        # M-RoPE's own: [3, 1, tokens]
        self.positions = model.model.get_rope_index(row, kinds, self.grid)[0].to(self.device)
        side = model.model.visual.spatial_merge_size
        places = get_vision_position_ids(self.grid, side)  # [patches, 2]
        self.patch_positions = places.to(self.device)

    def _chat(self) -> tuple[list[int], list[int]]:
        """Token ids before a question, with the picture's, and after it."""
        told = [{"type": "image"}, {"type": "text", "text": MARK}]
        pad = self.model.config.image_token_id
        try:
            chat = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": told}], tokenize=False, add_generation_prompt=True
            )
            parts = [self.tokenizer.encode(s, add_special_tokens=False) for s in chat.split(MARK)]
            before, after = parts
            if before.count(pad) != 1 or pad in after:
                raise ValueError(f"{before.count(pad)} pictures before the question")
        except Exception as error:  # a template is a program: anything may come of it
            raise OralError(
                f"the chat template of {self.name!r} has no one place for a picture before a "
                f"question ({type(error).__name__}): take tokenizer_config.json as it was released."
            ) from error
        at = before.index(pad)
        return before[:at] + [pad] * self.places + before[at + 1 :], after

    def peft_config(self) -> LoraConfig:
        """The LoRA on the language model that every adapter has."""
        return LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha,
            lora_dropout=0.0,
            target_modules=list(self.spec.targets),
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.spec.hub,
        )

    def describe(self) -> str:
        """The structure in words: both parts, sizes, adapted modules. Never the model's name."""
        text, image = self.model.config.text_config, self.model.config.vision_config
        return (
            f"A vision-language model of the {self.model.config.model_type} architecture: a causal "
            f"language model with {text.num_hidden_layers} layers, width {text.hidden_size}, "
            f"{text.num_attention_heads} heads, {text.num_key_value_heads} key-value heads, "
            f"feed-forward width {text.intermediate_size} and a vocabulary of {text.vocab_size}, "
            f"reading pictures of {self.pixels} pixels as {self.places} tokens of an image tower "
            f"with {image.depth} layers of width {image.embed_dim}; LoRA of rank {self.spec.rank} "
            f"on {', '.join(self.spec.targets)}."
        )

    def tokens(
        self, texts: Sequence[str], most: int = 64, choices: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Right-padded ids and mask [b, tokens] of questions about a picture, on the device.

        A question of more than `most` tokens loses its end; `choices` are the words to answer with.
        """
        said = CHOICES.format(", ".join(choices)) if choices else ""
        after = self._plain([said])[0] + self.after if said else self.after
        rows = [self.before + ids[:most] + after for ids in self._plain(texts)]
        lengths = torch.tensor([len(ids) for ids in rows], device=self.device)
        ids = pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True).to(self.device)
        mask = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        return {"input_ids": ids, "attention_mask": mask.long()}

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, in which what looks like a special token is plain text."""
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def patches(self, pictures: Tensor) -> Tensor:
        """[b, patches, values] as the image tower reads them, of bytes [b, 3 * pixels * pixels]."""
        return self.normalised(pictures).flatten(1)[:, self.order]

    def seen(self, pictures: Tensor) -> Tensor:
        """[b, places, width] what the image tower makes of bytes [b, 3 * pixels * pixels]."""
        patches = self.patches(pictures)
        b, each, _ = patches.shape
        found = self.model.model.visual(
            patches.flatten(0, 1),
            self.grid.expand(b, 3),
            # on the CPU: transformers asks for its values
            cu_seqlens=torch.tensor([0, b * each], dtype=torch.int32),
            position_ids=self.patch_positions.repeat(b, 1),
            each=each,
        )
        return found.pooler_output.unflatten(0, (b, -1))

    def states(self, model: nn.Module, ids: Tensor, pictures: Tensor) -> Tensor:
        """[b, tokens, width] the last states of `model`, this one under adapters, of rows of ids
        [b, tokens] and the bytes of their pictures."""
        core, end = model.model.language_model, self.first + self.places
        words, seen = core.embed_tokens(ids), self.seen(pictures)
        read = torch.cat([words[:, : self.first], seen.to(words.dtype), words[:, end:]], 1)
        positions = self.positions[..., : ids.shape[1]].expand(3, len(ids), -1)
        # no mask: what is padded comes after all that is read
        return core(inputs_embeds=read, position_ids=positions, use_cache=False).last_hidden_state


def _patches(processor: Qwen2VLImageProcessor, pixels: int) -> tuple[Tensor, Tensor]:
    """Which values of a picture, flat, a patch has: [patches, values]; and the grid [1, 3].

    Transformers' own processor is shown a picture of its own places.
    """
    places = torch.arange(3.0 * pixels * pixels).view(3, pixels, pixels)  # exact below 2 ** 24
    cut = processor(
        images=[places],
        do_resize=False,
        do_rescale=False,
        do_normalize=False,
        do_convert_rgb=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    return cut["pixel_values"].long(), cut["image_grid_thw"]


def load(
    spec: BaseSpec,
    folder: Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    words: PreTrainedTokenizerFast | None = None,
) -> VisionLanguage:
    """The model in `folder`, as the hub has it; where that is None, made on the spot with the
    tokenizer `words`. OralError when the files are not those of a whole Qwen2-VL."""
    if folder is None:
        model, tokenizer, processor = _tiny(spec, words)
    else:
        model, tokenizer, processor = _restored(spec, folder, dtype)
    how = attention(model.config.text_config, device, True)
    model.set_attn_implementation({"text_config": how, "vision_config": "one_size"})
    tokenizer.padding_side = "right"
    model.name_or_path = spec.hub  # what PEFT writes into adapters
    for weight in model.parameters():  # not the frequencies of positions: rounded they are others
        weight.data = weight.data.to(dtype)
    return VisionLanguage(spec, model.to(device), tokenizer, processor)


def _restored(spec: BaseSpec, folder: Path, dtype: torch.dtype):
    told = storage.read_json(folder / "config.json")
    if not isinstance(told, dict) or told.get("model_type") != "qwen2_vl":
        kind = told.get("model_type") if isinstance(told, dict) else told
        raise OralError(f"{folder} holds no Qwen2-VL: config.json says model_type {kind!r}.")
    with reading(folder, spec.name):
        model, found = Qwen2VLForConditionalGeneration.from_pretrained(
            folder,
            config=Qwen2VLConfig.from_pretrained(folder),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        processor = Qwen2VLImageProcessor.from_pretrained(folder)
    check_fit(folder, found)
    return model, tokenizer, processor


def _tiny(spec: BaseSpec, tokenizer: PreTrainedTokenizerFast):
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{n}|>" for n in SPECIAL]})
    tokenizer.chat_template = CHAT
    number = {n: tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in SPECIAL}
    spread = {"initializer_range": 0.2}  # random layers that move their input: LoRA has a hold
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": number["im_end"],
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "patch_size": 4}
    config = Qwen2VLConfig(
        text_config=text | spread,
        vision_config=image | spread,
        image_token_id=number["image_pad"],
        video_token_id=number["video_pad"],
        vision_start_token_id=number["vision_start"],
        vision_end_token_id=number["vision_end"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, "tiny", spec.name))
        model = Qwen2VLForConditionalGeneration(config)
    return model, tokenizer, Qwen2VLImageProcessor(patch_size=4)


def _one_size(module, query, key, value, attention_mask=None, scaling=None, each=0, **rest):
    """Attention [1, tokens, heads, width] within pictures of `each` tokens, 0: there is one.

    transformers would go from picture to picture; those of one size are a batch.
    """
    count = query.shape[2]
    parts = [x[0].unflatten(1, (-1, each or count)).transpose(0, 1) for x in (query, key, value)]
    found = F.scaled_dot_product_attention(*parts, scale=scaling)  # [b, heads, each, width]
    return found.transpose(1, 2).flatten(0, 1)[None], None


AttentionInterface.register("one_size", _one_size)
