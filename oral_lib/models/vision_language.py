"""Vision-language models: Qwen2-VL, which reads an image as tokens in front of a question.

    row = before, image tokens, after, question, choices, the turn of the assistant
    answer: the likelihood of each label word's first token, as of a causal language model

All images have one size, and the image has one position in every row. So the image tokens are the
same columns of every row, rows need no mask, and all rows share the positions of their columns
(of time, height and width: M-RoPE). Images enter as bytes. Order and normalisation of the patches
follow the image processor of transformers, the words around them the model's chat template. LoRA
is on the language model; the image tower is frozen.

Letters: `b` rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AttentionInterface,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)
from transformers.vision_utils import get_vision_position_ids

from oral_lib import seeds
from oral_lib.checkpoints.hugging_face import (
    check_vocabulary,
    pretrained,
    read_config,
    read_processor,
    read_tokenizer,
)
from oral_lib.errors import OralError, UsageError
from oral_lib.models.base import EncodedRows
from oral_lib.models.registry import BaseSpec
from oral_lib.models.text import (
    TOKENS,
    attention,
    first_tokens,
    last_states,
    vocabulary_logits,
    word_tokenizer,
)
from oral_lib.models.vision import Backbone
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import Task

_MARK = "<question>"  # where the chat template puts a text
CHOICES = " Answer with one of these words: {}."
LONGEST = 1024  # tokens of a row without the image
CHAT = (  # of the tiny model: ChatML, like Qwen2-VL's
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")


class VisionLanguage(Backbone):
    """A frozen Qwen2-VL with its tokenizer; an image takes `image_tokens` tokens.

    OralError when the chat template has no single position for an image before a question, or when
    the processor cuts other patches than the model reads.
    """

    reads = "images with texts"
    task_type = "CAUSAL_LM"
    layers = (nn.Linear,)
    modules_to_save = None

    def __init__(
        self,
        spec: BaseSpec,
        model: Qwen2VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        processor: Qwen2VLImageProcessor,
    ):
        try:
            config = {
                "interpolation": Resampling(processor.resample).name,
                "mean": [float(x) for x in processor.image_mean],
                "std": [float(x) for x in processor.image_std],
            }
        except (TypeError, ValueError) as error:
            raise OralError(
                f"{spec.name}: preprocessor_config.json has no valid interpolation, mean or std of "
                f"images ({error}): use the released file."
            ) from error
        super().__init__(spec, model, spec.pixels, config)
        self.tokenizer = tokenizer
        cut = (processor.patch_size, processor.temporal_patch_size, processor.merge_size)
        image = model.config.vision_config
        read = (image.patch_size, image.temporal_patch_size, image.spatial_merge_size)
        if cut != read or spec.pixels % (image.patch_size * image.spatial_merge_size):
            raise OralError(
                f"{spec.name}: preprocessor_config.json cuts images of {spec.pixels} pixels into "
                f"patches of {cut}, but config.json says {read}: use the released files."
            )
        self.order, self.grid = _patches(processor, spec.pixels)
        self.image_tokens = int(self.grid.prod()) // processor.merge_size**2
        self.order = self.order.to(self.device)
        self.before, self.after = self._chat()
        self.around = len(self.before) + len(self.after)  # tokens of a row besides the question
        self.first = self.before.index(model.config.image_token_id)
        row = torch.tensor([self.before + [0] * LONGEST])
        kinds = (row == model.config.image_token_id).int()
        # M-RoPE: [3, 1, tokens]
        self.positions = model.model.get_rope_index(row, kinds, self.grid)[0].to(self.device)
        side = model.model.visual.spatial_merge_size
        patch_positions = get_vision_position_ids(self.grid, side)  # [patches, 2]
        self.patch_positions = patch_positions.to(self.device)

    def _chat(self) -> tuple[list[int], list[int]]:
        """Token ids before a question, with the ids of the image, and after it."""
        content = [{"type": "image"}, {"type": "text", "text": _MARK}]
        pad = self.model.config.image_token_id
        try:
            chat = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            texts = chat.split(_MARK)
            before, after = (self.tokenizer.encode(s, add_special_tokens=False) for s in texts)
            self.chat_end = texts[1]
            if before.count(pad) != 1 or pad in after:
                raise ValueError(f"{before.count(pad)} images before the question")
            if max(before + after) >= self.embedding.num_embeddings:
                raise ValueError("a special token without a row in the embedding")
        except MemoryError:
            raise
        except Exception as error:  # a template is a program and may fail in any way
            raise OralError(
                f"the chat template of {self.name!r} has no single position for an image before a "
                f"question ({type(error).__name__}): use the released tokenizer_config.json."
            ) from error
        at = before.index(pad)
        return before[:at] + [pad] * self.image_tokens + before[at + 1 :], after

    def describe(self) -> str:
        text, image = self.model.config.text_config, self.model.config.vision_config
        return (
            f"A vision-language model of the {self.model.config.model_type} architecture: a causal "
            f"language model with {text.num_hidden_layers} layers, width {text.hidden_size}, "
            f"{text.num_attention_heads} heads, {text.num_key_value_heads} key-value heads, "
            f"feed-forward width {text.intermediate_size} and a vocabulary of {text.vocab_size}, "
            f"reading pictures of {self.pixels} pixels as {self.image_tokens} tokens of an image "
            f"tower with {image.depth} layers of width {image.embed_dim}; LoRA of rank "
            f"{self.spec.rank} on {', '.join(self.spec.targets)}."
        )

    # ------------------------------------------------------------ tasks
    def scoring_kind(self, task: Task) -> str:
        if super().scoring_kind(task) == "match":
            raise UsageError(
                f"task {task.name!r} matches texts with images, and {self.name!r} answers "
                "questions about one image: choose a two-tower model."
            )
        return "label"

    def answer_ids(self, task: Task) -> Tensor:
        """[labels] first token of each label word."""
        self.scoring_kind(task)
        return first_tokens(self, task, self.chat_end)

    def encode_rows(self, task: Task, rows: Sequence[Row]) -> EncodedRows:
        """Token rows with questions of at most `task.max_tokens` tokens, and their images."""
        self.scoring_kind(task)
        texts = [row.text for row in rows]
        return self._encode_pairs(self.tokens(texts, task.max_tokens, choices=task.labels), rows)

    def answer_logits(self, adapted: nn.Module, batch: EncodedRows) -> Tensor:
        return vocabulary_logits(adapted, last_states(self.states(adapted, batch), batch))

    def batch_size(self, task: Task, groups: int = 1) -> int:
        return max(1, TOKENS[self.device.type] // (groups * (task.max_tokens + self.around)))

    def forward_blank(self, width: int) -> None:
        ids = torch.ones(1, width + self.around, dtype=torch.long, device=self.device)
        batch = EncodedRows.of_equal_length(ids)
        first = torch.zeros(1, dtype=torch.long, device=self.device)
        self.states(self.model, replace(batch, image_index=first, images=self._blank()))

    def tokens(
        self, texts: Sequence[str], max_tokens: int = 64, choices: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Right-padded ids and mask [b, tokens] of questions about an image, on the device.

        A question of more than `max_tokens` tokens loses its end. `choices` are the words that may
        be answered.
        """
        instruction = CHOICES.format(", ".join(choices)) if choices else ""
        after = self._plain([instruction])[0] + self.after if instruction else self.after
        rows = [self.before + ids[:max_tokens] + after for ids in self._plain(texts)]
        lengths = torch.tensor([len(ids) for ids in rows], device=self.device)
        ids = self.embedded(pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True))
        ids = ids.to(self.device)
        mask = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        return {"input_ids": ids, "attention_mask": mask.long()}

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts; special tokens written in a text are treated as plain text."""
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def patches(self, values: Tensor) -> Tensor:
        """[b, patches, values] as the image tower reads them, of bytes [b, 3 * pixels * pixels]."""
        return self.normalised(values).flatten(1)[:, self.order]

    def image_states(self, values: Tensor) -> Tensor:
        """[b, image tokens, width] output of the image tower for bytes [b, 3 * pixels * pixels]."""
        patches = self.patches(values)
        b, count, _ = patches.shape
        output = self.model.model.visual(
            patches.flatten(0, 1),
            self.grid.expand(b, 3),
            # on the CPU: transformers reads its values
            cu_seqlens=torch.tensor([0, b * count], dtype=torch.int32),
            position_ids=self.patch_positions.repeat(b, 1),
            patches=count,
        )
        return output.pooler_output.unflatten(0, (b, -1))

    def states(self, adapted: nn.Module, batch: EncodedRows) -> Tensor:
        """[b, tokens, width] last hidden states of `adapted`."""
        core, end = adapted.model.language_model, self.first + self.image_tokens
        words = core.embed_tokens(batch.ids)
        image = self.image_states(batch.images[batch.image_index]).to(words.dtype)
        embeddings = torch.cat([words[:, : self.first], image, words[:, end:]], 1)
        positions = self.positions[..., : batch.ids.shape[1]].expand(3, len(batch.ids), -1)
        # no mask: padding follows all that is scored
        output = core(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
        return output.last_hidden_state


def _patches(processor: Qwen2VLImageProcessor, pixels: int) -> tuple[Tensor, Tensor]:
    """Indices [patches, values] of each patch's values in a flat image, and the grid [1, 3].

    Computed by the processor of transformers, from an image whose values are their own indices.
    """
    indices = torch.arange(3.0 * pixels * pixels).view(3, pixels, pixels)  # exact below 2 ** 24
    cut = processor(
        images=[indices],
        do_resize=False,
        do_rescale=False,
        do_normalize=False,
        do_convert_rgb=False,
        input_data_format="channels_first",
        return_tensors="pt",
    )
    return cut["pixel_values"].long(), cut["image_grid_thw"]


def load(
    spec: BaseSpec, folder: Path | None, device: str | torch.device, dtype: torch.dtype
) -> VisionLanguage:
    """The model in `folder`, in the layout of the hub; a tiny random one if that is None. OralError
    when files are missing, damaged, or of another model."""
    model, tokenizer, processor = _restored(spec, folder, dtype) if folder else _tiny(spec)
    text_attention = attention(model.config.text_config, device, True)
    model.set_attn_implementation({"text_config": text_attention, "vision_config": "one_size"})
    tokenizer.padding_side = "right"
    model.name_or_path = spec.hub  # PEFT writes it into adapters
    for weight in model.parameters():  # not buffers: rounded frequencies would move positions
        weight.data = weight.data.to(dtype)
    return VisionLanguage(spec, model.to(device), tokenizer, processor)


def _restored(spec: BaseSpec, folder: Path, dtype: torch.dtype):
    config = read_config(folder, spec.name, ("qwen2_vl",))
    tokenizer = read_tokenizer(folder, spec.name)
    processor = read_processor(Qwen2VLImageProcessor, folder, spec.name)
    model = pretrained(
        Qwen2VLForConditionalGeneration, folder, spec.name, config=config, dtype=dtype
    )
    check_vocabulary(folder, tokenizer, model.get_input_embeddings())
    return model, tokenizer, processor


def _tiny(spec: BaseSpec):
    tokenizer = word_tokenizer("multimodal")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{n}|>" for n in SPECIAL]})
    tokenizer.chat_template = CHAT
    number = {n: tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in SPECIAL}
    spread = {
        "initializer_range": 0.2
    }  # large: random layers must change their input for LoRA to matter
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


def _one_size(module, query, key, value, attention_mask=None, scaling=None, patches=0, **rest):
    """Attention [1, tokens, heads, width] within images of `patches` tokens; 0: a single image.

    transformers would loop over images; images of one size form a batch.
    """
    count = query.shape[2]
    parts = [x[0].unflatten(1, (-1, patches or count)).transpose(0, 1) for x in (query, key, value)]
    output = F.scaled_dot_product_attention(*parts, scale=scaling)  # [b, heads, patches, width]
    return output.transpose(1, 2).flatten(0, 1)[None], None


AttentionInterface.register("one_size", _one_size)
