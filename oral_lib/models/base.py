"""A base model: frozen weights under a LoRA adapter, and what the generator reads of it.

`BaseModel` holds what all base models share; each family (`text`, `vision`, `two_tower`,
`vision_language`, `latent_diffusion`) adds how it reads the rows of a task and what it outputs. A
generator sees two things of a base model: its structure in words (`describe`) and a short vector
computed from its weights (`fingerprint`).

Letters: `b` rows of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from oral_lib import seeds
from oral_lib.errors import OralError, UsageError
from oral_lib.lora import peft_model
from oral_lib.method.conditioning import fingerprint
from oral_lib.models.registry import BaseSpec, root
from oral_lib.tasks.rows import Row
from oral_lib.tasks.task import PAIRED, Task

INPUTS = {"image": "images", "style": "images of a style"}  # scoring -> input; others: texts
INPUTS |= dict.fromkeys(PAIRED, "images with texts")


@dataclass(frozen=True)
class EncodedRows:
    """Rows of a task as a base model reads them, right-padded, on the device of the model.

    `ids` holds token ids; of images it holds bytes and of a style latents, all rows equally long.
    An option task has one row for each option.

    Never padded on the left: a padded query would have no key to attend to.
    """

    ids: Tensor  # [b, tokens]
    lengths: Tensor  # [b]
    begins: Tensor  # [b] index of the first scored token; `lengths` if the next token is scored
    options: int = 1  # rows of `ids` for each row of the task
    tail: int = 0  # maximum number of scored tokens in a row
    image_index: Tensor | None = None  # [b] index of the row's image in `images`
    images: Tensor | None = None  # [m, bytes]

    @classmethod
    def of_equal_length(cls, values: Tensor) -> "EncodedRows":
        """Rows `values` [b, width] without padding."""
        ends = torch.full((len(values),), values.shape[1], device=values.device)
        return cls(values, ends, ends)

    def __getitem__(self, rows: Tensor) -> "EncodedRows":
        """The task's rows of these indices, with all options of each."""
        index = rows[:, None] * self.options + torch.arange(self.options, device=rows.device)
        index = index.flatten()
        part = replace(
            self, ids=self.ids[index], lengths=self.lengths[index], begins=self.begins[index]
        )
        if self.images is None:
            return part
        count = torch.arange(len(rows), device=rows.device)
        return replace(part, image_index=count, images=self.images[self.image_index[rows]])

    def cut(self, width: int, tail: int | None = None) -> "EncodedRows":
        """The first `width` columns, of which at most `tail` are scored."""
        return replace(self, ids=self.ids[:, :width], tail=self.tail if tail is None else tail)

    @property
    def mask(self) -> Tensor:
        """[b, tokens] 1 for a token and 0 for padding."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (column < self.lengths[:, None]).long()

    @property
    def attention_mask(self) -> Tensor:
        """`mask` for an encoder's attention: [b, tokens], or [b, 1, tokens, tokens] on a GPU, where
        transformers would otherwise wait for the device to check for padding."""
        if self.ids.device.type != "cuda":
            return self.mask
        b, width = self.ids.shape
        return self.mask.bool()[:, None, None].expand(b, 1, width, width)


class BaseModel(ABC):
    """A frozen model with its tokenizer; `labels` is the number of classes of its own head.

    A subclass for each family states which tasks it can be scored on and how it reads their rows.
    `adapted` arguments are the model under adapters: PEFT's, or a stack of S adapters
    (`lora.stacked`), which reads S groups of the same rows.

    Args:
        spec: its entry in the registry.
        model: the model; its weights are frozen here.
        tokenizer: its tokenizer, or None.
        labels: number of classes of an encoder's head.

    >>> import oral_lib
    >>> base = oral_lib.load_base("tiny-causal", source="made")  # a subclass of BaseModel
    >>> base.family, base.spec.rank, len(base.lora_init()) > 0
    ('causal', 4, True)
    """

    reads = "texts"  # one of the inputs in INPUTS
    task_type: str | None = None  # PEFT's
    layers: tuple[type[nn.Module], ...] = (nn.Linear,)  # module types that LoRA adapts

    def __init__(self, spec: BaseSpec, model: nn.Module, tokenizer, *, labels: int = 2):
        self.spec, self.tokenizer, self.labels = spec, tokenizer, labels
        self.model = model.requires_grad_(False).eval()
        self._lora_inits: dict[BaseSpec, dict[str, Tensor]] = {}

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def family(self) -> str:
        return self.spec.family

    @property
    def weights(self) -> int:
        """Number of weights of the model."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # ------------------------------------------------------------ the adapter
    @property
    def modules_to_save(self) -> list[str] | None:
        """Names of the modules that belong to the adapter as a whole, such as a head."""
        return None

    def peft_config(self) -> LoraConfig:
        """The LoRA configuration of every adapter: rank, scale, modules, head."""
        return LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha,
            lora_dropout=0.0,
            target_modules=list(self.spec.targets),
            modules_to_save=self.modules_to_save,
            task_type=self.task_type,
            base_model_name_or_path=self.spec.hub,
        )

    def lora_init(self) -> dict[str, Tensor]:
        """The LoRA initialisation shared by every adapter of this base: float32 by PEFT's names.

        All versions of a model share it. B is zero and the head is a fixed small draw, so this
        adapter equals the base model. Factors trained from different initialisations could not be
        compared: B A = (B R)(R^-1 A) for any invertible R. A yes/no head starts at zero: it favours
        neither class, and a task and its complement lead to equal LoRAs under mirrored heads.

        Computed once, on a copy of the model without weights. OralError while an adapter is
        attached, unless it was computed before.
        """
        if self.spec not in self._lora_inits:
            self._lora_inits[self.spec] = self._draw_lora_init()
        return {name: tensor.clone() for name, tensor in self._lora_inits[self.spec].items()}

    def _draw_lora_init(self) -> dict[str, Tensor]:
        self.adapted()  # raises while an adapter is attached
        with torch.random.fork_rng(devices=[]):
            # `shapes` comes after the seed: PEFT draws, too, when it wraps a model
            torch.default_generator.manual_seed(seeds.integer(0, "lora-init", root(self.spec).name))
            shapes = peft_model.shapes(self.model, self.peft_config())
            tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
            for name in sorted(tensors):
                if "lora_A" in name:
                    nn.init.kaiming_uniform_(tensors[name], a=5**0.5)
                elif "lora_B" not in name:
                    tensors[name].normal_(std=0.0 if self.spec.experiment == "unseen" else 0.02)
        return tensors

    @contextmanager
    def attach(self, tensors: dict[str, Tensor] | None = None) -> Iterator[PeftModel]:
        """The base as a PEFT model with `tensors` (default: `lora_init`), detached on exit."""
        tensors = self.lora_init() if tensors is None else tensors
        model = peft_model.wrap(self.model, self.peft_config())
        try:
            peft_model.put(model, tensors)
            yield model
        finally:
            peft_model.unload(model)

    # ------------------------------------------------------------ for the generator
    @abstractmethod
    def describe(self) -> str:
        """The structure in words: architecture, sizes, adapted modules. Never the model's name."""

    def adapted(self) -> dict[str, Tensor]:
        """The weights that LoRA adapts as matrices [out, in * kernel], by module name. OralError
        while an adapter is attached."""
        ends = tuple(f".{target}" for target in self.spec.targets)
        weights = {
            name: module.weight.detach().flatten(1)
            for name, module in self.model.named_modules()
            if isinstance(module, self.layers) and f".{name}".endswith(ends)
        }
        if not weights:
            raise OralError(
                f"{self.name!r} has no plain layers {', '.join(self.spec.targets)}: leave `attach` "
                "before you read its weights."
            )
        return weights

    def fingerprint(self) -> Tensor:
        """[f] float32: a fixed random sketch of the adapted weights (`method.conditioning`)."""
        return fingerprint(self.adapted())

    # ------------------------------------------------------------ tasks
    def scoring_kind(self, task: Task) -> str:
        """How this model is scored on `task`: one of `tasks.task.SCORINGS`. UsageError if the model
        cannot read or answer the task."""
        required = INPUTS.get(task.scoring, "texts")
        if required != self.reads:
            raise UsageError(
                f"task {task.name!r} is about {required}, but base model {self.name!r} reads "
                f"{self.reads}: choose another base model."
            )
        return task.scoring

    def answer_ids(self, task: Task) -> Tensor:
        """[labels] columns of `answer_logits` that belong to the task's labels, in their order."""
        return torch.arange(len(task.labels), device=self.device)

    @abstractmethod
    def encode_rows(self, task: Task, rows: Sequence[Row]) -> EncodedRows:
        """The rows as the model reads them, on its device."""

    def answer_logits(self, adapted: nn.Module, batch: EncodedRows) -> Tensor:
        """[b, vocabulary or classes] float32 logits of the answer that follows each row."""
        raise NotImplementedError(f"{self.name!r} does not answer with a label.")

    @abstractmethod
    def batch_size(self, task: Task, groups: int = 1) -> int:
        """Number of rows that each of `groups` adapters reads in one batch."""

    def forward_flops(self, width: int) -> tuple[int, int]:
        """Operations of one forward pass over one row with `width` tokens of text: of the frozen
        weights, and of LoRA. Counted from the calls of each layer in such a pass."""
        counts, layers = {}, (nn.Conv2d, nn.Linear)

        def counter(name: str):
            def count(module, _, output) -> None:  # positions that the weight is applied to
                counts[name] = output.numel() // len(module.weight), module.weight

            return count

        named = [(n, m) for n, m in self.model.named_modules() if isinstance(m, layers)]
        hooks = [module.register_forward_hook(counter(name)) for name, module in named]
        with torch.inference_mode():
            self.forward_blank(width)
        for hook in hooks:
            hook.remove()
        frozen = sum(positions * weight.numel() for positions, weight in counts.values())
        lora = sum(
            counts[n][0] * self.spec.rank * (len(w) + w.shape[1]) for n, w in self.adapted().items()
        )
        return 2 * frozen, 2 * lora

    def forward_blank(self, width: int) -> None:
        """Runs the frozen model once on one blank row with `width` tokens of text."""
        raise NotImplementedError(f"{self.name!r} has no count of operations.")

    def tokens(self, texts: Sequence[str], max_tokens: int = 64) -> dict[str, Tensor]:
        """Right-padded ids and mask [b, tokens <= max_tokens] on the model's device.

        Never padded on the left: a padded query would have no key to attend to, and some bf16
        attention kernels return NaN for it. The tokenizer decides which end of a long text is cut.
        """
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        ids = self.embedded(batch["input_ids"]).to(self.device)
        return {"input_ids": ids, "attention_mask": batch["attention_mask"].to(self.device)}

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding of the model's tokens."""
        return self.model.get_input_embeddings()

    def embedded(self, ids: Tensor) -> Tensor:
        """`ids`, on the CPU. UsageError if the embedding has no row for one of them."""
        rows = self.embedding.num_embeddings
        if ids.numel() and int(ids.max()) >= rows:
            token = self.tokenizer.convert_ids_to_tokens(int(ids.max()))
            raise UsageError(
                f"a text contains the special token {token!r}, and the embedding of {self.name!r} "
                f"has {rows} rows and none for it: change the text or the tokenizer."
            )
        return ids
