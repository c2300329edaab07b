"""Base models: frozen weights, tokenizer, shared LoRA start, and what a generator hears of them.

A generator knows a base model by two things only: its structure in words (`describe`) and a short
vector computed from its weights (`fingerprint`). Adding a model is one entry of `REGISTRY`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from oral_lib import assets, seeds, tasks
from oral_lib.errors import OralError, UsageError, closest

SKETCH = 16  # columns of the random projection through which a weight matrix is seen
FINGERPRINT = 64  # values of a fingerprint


@dataclass(frozen=True)
class BaseSpec:
    """What the registry knows of a base model; `asset` None: made on the spot (smoke scale)."""

    name: str
    family: str
    asset: str | None
    hub: str  # where adapters say that their base model is to be found
    targets: tuple[str, ...]
    rank: int = 8
    alpha: int = 16
    version: str = "t0"  # t0 is the model as released


BERT_LINEARS = ("query", "key", "value", "dense")
LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
REGISTRY = {
    spec.name: spec
    for spec in (
        BaseSpec(
            "minilm-l6",
            "encoder",
            asset="minilm-l6",
            hub="sentence-transformers/all-MiniLM-L6-v2",
            targets=("query", "value"),
        ),
        BaseSpec(
            "smollm2-135m",
            "causal",
            asset="smollm2-135m",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            targets=("q_proj", "v_proj"),
        ),
        BaseSpec("tiny-encoder", "encoder", None, "tiny-encoder", BERT_LINEARS, rank=4, alpha=8),
        BaseSpec("tiny-causal", "causal", None, "tiny-causal", LLAMA_LINEARS, rank=4, alpha=8),
    )
}


def names() -> list[str]:
    """All registered base models."""
    return list(REGISTRY)


def spec(name: str) -> BaseSpec:
    """The registry entry of `name`; `UsageError` with the nearest name if there is none."""
    if name not in REGISTRY:
        raise UsageError(
            f"unknown base model {name!r}.{closest(name, REGISTRY)} Known: {', '.join(REGISTRY)}."
        )
    return REGISTRY[name]


class BaseModel:
    """A frozen transformers model with its tokenizer.

    `labels` is the size of an encoder's classification head; causal models have none.
    """

    def __init__(self, spec: BaseSpec, model: nn.Module, tokenizer, *, labels: int = 2):
        self.spec, self.tokenizer, self.labels = spec, tokenizer, labels
        self.model = model.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def family(self) -> str:
        return self.spec.family

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def peft_config(self) -> LoraConfig:
        """The LoRA that every adapter of this base has: rank, scale, modules, head."""
        return LoraConfig(
            r=self.spec.rank,
            lora_alpha=self.spec.alpha,
            lora_dropout=0.0,
            target_modules=list(self.spec.targets),
            task_type="CAUSAL_LM" if self.family == "causal" else "SEQ_CLS",
            base_model_name_or_path=self.spec.hub,
        )

    def lora_init(self) -> dict[str, Tensor]:
        """The one LoRA start shared by every adapter of this base, by PEFT's saved names, float32.

        B is zero and the head is a fixed small draw, so this adapter is the base model. Factors of
        runs that start elsewhere could not be compared: B A = (B R)(R^-1 A) for any invertible R.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.integer(0, "lora-init", self.name))
            peft_model = self._wrapped()
            start = take(peft_model)
            for name in sorted(start):
                if "lora_A" in name:
                    nn.init.kaiming_uniform_(start[name], a=5**0.5)
                elif "lora_B" not in name:
                    start[name].normal_(std=0.02)
            self.model = _unload(peft_model)
        return start

    def describe(self) -> str:
        """The structure in words: architecture, sizes, adapted modules. Never the model's name."""
        c = self.model.config
        kind = "causal language model" if self.family == "causal" else "bidirectional text encoder"
        heads = f"{c.num_attention_heads} heads"
        if getattr(c, "num_key_value_heads", c.num_attention_heads) != c.num_attention_heads:
            heads += f", {c.num_key_value_heads} key-value heads"
        return (
            f"A {kind} of the {c.model_type} architecture with {c.num_hidden_layers} layers, width "
            f"{c.hidden_size}, {heads}, feed-forward width {c.intermediate_size} and a vocabulary "
            f"of {c.vocab_size}; LoRA of rank {self.spec.rank} on {', '.join(self.spec.targets)}."
        )

    def adapted(self) -> dict[str, Tensor]:
        """The weight matrices that LoRA adapts, by module name. OralError while one is attached."""
        weights = {
            name: module.weight.detach()
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in self.spec.targets
        }
        if not weights:
            raise OralError(
                f"{self.name!r} has no plain linear layers {', '.join(self.spec.targets)}: leave "
                "`attach` before you read its weights."
            )
        return weights

    def fingerprint(self) -> Tensor:
        """[FINGERPRINT] float32: a fixed random sketch of the adapted weights, summed over modules.

        Each W [out, in] is seen through a Gaussian P [in, q] drawn from the module's own name: the
        log singular values of W P (a sketch of its leading spectrum) and u^T W P / |W| for a fixed
        u. Summing per-module random images makes the order of modules irrelevant.
        """
        total = torch.zeros(FINGERPRINT, dtype=torch.float64)
        weights = self.adapted()
        for name in sorted(weights):
            w = weights[name].float()
            draw = seeds.generator(0, "fingerprint", name)
            p = torch.randn(w.shape[1], SKETCH, generator=draw).to(w.device)
            u = torch.randn(w.shape[0], generator=draw).to(w.device)
            image = torch.randn(FINGERPRINT, 2 * SKETCH, generator=draw)
            seen = w @ p  # [out, q]
            gram = (seen.T @ seen / SKETCH).cpu().double()
            spectrum = torch.linalg.eigvalsh(gram).clamp_min(1e-12).log() / 2
            signed = (u @ seen / w.norm()).cpu().double()
            total += image.double() @ torch.cat([spectrum, signed])
        return (total / len(weights) ** 0.5).float()

    @contextmanager
    def attach(self, tensors: dict[str, Tensor] | None = None) -> Iterator[PeftModel]:
        """The base as a PEFT model with `tensors` (default: the shared start), detached on exit."""
        tensors = self.lora_init() if tensors is None else tensors
        peft_model = self._wrapped()
        try:
            put(peft_model, tensors)
            yield peft_model
        finally:
            self.model = _unload(peft_model)

    def _wrapped(self) -> PeftModel:
        """The model with LoRA and head to train, both in float32 whatever the base computes in."""
        with warnings.catch_warnings():  # PEFT asks for a name on its way out
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
            peft_model = get_peft_model(self.model, self.peft_config())
        for module in peft_model.modules():
            if isinstance(module, ModulesToSaveWrapper):  # PEFT itself casts LoRA factors only
                module.modules_to_save.float()
                module.register_forward_pre_hook(_in_float32)
        return peft_model

    def tokens(self, texts: list[str], most: int = 64) -> dict[str, Tensor]:
        """Right-padded ids and mask [b, tokens <= most] on the model's device.

        Never padded on the left: a padded query would have nothing to attend to, and some bf16
        attention kernels answer that with NaN. Too long a prompt loses its beginning (the answer
        follows its end), too long a text for an encoder its end.
        """
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        return {k: batch[k].to(self.device) for k in ("input_ids", "attention_mask")}


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)


def take(peft_model: PeftModel) -> dict[str, Tensor]:
    """A copy of the adapter tensors of `peft_model` by PEFT's saved names, float32, on the CPU."""
    # "auto" would ask the hub whether the vocabulary has grown
    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return {name: value.detach().float().cpu().clone() for name, value in state.items()}


def _unload(peft_model: PeftModel) -> nn.Module:
    named = peft_model.get_base_model().named_modules()
    heads = {n: m.original_module for n, m in named if isinstance(m, ModulesToSaveWrapper)}
    model = peft_model.unload().requires_grad_(False).eval()
    for name, head in heads.items():  # PEFT leaves the adapter's head in the base
        model.set_submodule(name, head)
    vars(model).pop("peft_config", None)  # PEFT may leave it behind and then warns the next time
    return model


def put(peft_model: PeftModel, tensors: dict[str, Tensor]) -> None:
    """Writes adapter tensors (PEFT's saved names) into `peft_model`, in place.

    OralError unless they are all that the model wants: PEFT would skip what it does not know and
    leave what is missing as it was.
    """
    wanted = get_peft_model_state_dict(peft_model, save_embedding_layers=False).keys()
    if odd := sorted(wanted ^ tensors.keys()):
        fault = "lacks" if odd[0] in wanted else "has the unknown"
        raise OralError(f"This adapter does not fit the base model: it {fault} tensor {odd[0]!r}.")
    set_peft_model_state_dict(peft_model, tensors)


def load(
    name: str, *, source: str = "packages", labels: int = 2, device: str | torch.device = "cpu"
) -> BaseModel:
    """The base model called `name`, frozen, in the dtype that `device` computes fastest."""
    entry = spec(name)
    if entry.asset is None:
        model, tokenizer = _tiny(entry, labels)
    else:
        folder = assets.model_dir(entry.asset, source=source)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        kind = (
            AutoModelForCausalLM if entry.family == "causal" else AutoModelForSequenceClassification
        )
        extra = {} if entry.family == "causal" else {"num_labels": labels}
        if torch.device(device).type == "cpu":  # short rows: a third less time a training step
            extra["attn_implementation"] = "eager"
        with quiet():
            model = kind.from_pretrained(folder, **extra)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left" if entry.family == "causal" else "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.name_or_path = entry.hub  # what PEFT writes into adapters
    model = model.to(device=device, dtype=fast_dtype(device))
    if entry.family == "causal" and torch.device(device).type == "cuda":
        model.set_attn_implementation("plain_causal")
    return BaseModel(entry, model, tokenizer, labels=labels)


def _causal_attention(module, query, key, value, mask, scaling=None, dropout=0.0, **rest):
    """Attention [b, tokens, heads, width] to all that came before; what is padded comes after.

    Without a mask to build, a step asks nothing of the device and may become a CUDA graph.
    """
    many = True if query.shape[2] > 1 else False  # noqa: SIM210 - a symbol where compiled
    seen = F.scaled_dot_product_attention(
        query, key, value, is_causal=many, scale=scaling, enable_gqa=True
    )
    return seen.transpose(1, 2).contiguous(), None


AttentionInterface.register("plain_causal", _causal_attention)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from reporting the new head and from drawing bars into logs."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32."""
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _tiny(entry: BaseSpec, labels: int) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    tokenizer = word_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,  # random layers that move their input, so that LoRA has a hold
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, "tiny", entry.name))
        if entry.family == "causal":
            return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)), tokenizer
        return BertForSequenceClassification(BertConfig(**sizes, num_labels=labels)), tokenizer


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer over the words of the task files: enough for the smoke scale."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = set(tasks.FILLER)
    for task in map(tasks.load, tasks.names()):
        texts = [task.template, *task.labels, *chain(*task.made), *task.training_texts]
        words.update(w for text in texts for w in text.lower().replace("{text}", "").split())
    cut = pre_tokenizers.Whitespace()
    words = {piece for word in words for piece, _ in cut.pre_tokenize_str(word)}
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *sorted(words)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), cut
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )
