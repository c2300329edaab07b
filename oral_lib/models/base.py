"""A base model: frozen weights, tokenizer, shared LoRA start, and what a generator hears of it.

A generator knows a base model by two things only: its structure in words (`describe`) and a short
vector computed from its weights (`fingerprint`).
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

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
from transformers import AttentionInterface, PretrainedConfig
from transformers.utils import logging

from oral_lib import seeds
from oral_lib.errors import OralError
from oral_lib.method.conditioning import fingerprint
from oral_lib.models.registry import BaseSpec, root


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
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(p.numel() for p in self.model.parameters())

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

        All versions of a model have the same. B is zero and the head is a fixed small draw, so this
        adapter is the base model. Factors of runs that start elsewhere could not be compared:
        B A = (B R)(R^-1 A) for any invertible R. A head of yes and no starts at zero: it favours
        neither, and a task and its complement lead to the same LoRA under mirrored heads.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.integer(0, "lora-init", root(self.spec).name))
            peft_model = self._wrapped()
            start = take(peft_model)
            for name in sorted(start):
                if "lora_A" in name:
                    nn.init.kaiming_uniform_(start[name], a=5**0.5)
                elif "lora_B" not in name:
                    start[name].normal_(std=0.0 if self.spec.experiment == "unseen" else 0.02)
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
        """float32 [64]: the fingerprint of the adapted weights (`method.conditioning`)."""
        return fingerprint(self.adapted())

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


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Reads `what` with transformers out of `folder`, quietly. OralError in one line for missing
    and damaged files: the errors of transformers, tokenizers and safetensors share no parent."""
    try:
        with quiet():
            yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise OralError(
            f"{folder} holds no whole {what} ({type(error).__name__}: {first}): put its files "
            "there again, weights as safetensors; pickled ones are never read."
        ) from error


def check_fit(
    folder: Path,
    found: Mapping[str, Collection],
    new: Sequence[str] = (),
    over: Sequence[str] = (),
) -> None:
    """OralError unless the weights that were `found` in `folder` (`output_loading_info`) are those
    of the model that its config.json describes, but for names with a part of `new`, which may lack,
    or of `over`, which it need not have: transformers would draw at random what lacks."""
    over = (*over, "position_ids", "inv_freq")  # tables that older files hold, made anew since
    odd = [n for n in map(str, found["missing_keys"]) if not any(part in n for part in new)]
    odd += [n for n in map(str, found["unexpected_keys"]) if not any(part in n for part in over)]
    if odd := sorted([*odd, *map(str, found["mismatched_keys"])]):
        raise OralError(
            f"{folder} holds another model than config.json says: {odd[0]!r} does not fit."
        )


def attention(config: PretrainedConfig, device: str | torch.device, causal: bool = False) -> str:
    """How attention is computed: "eager" on a CPU, where short rows then take a third less time a
    training step, and for Gemma 2, whose capped logits nothing else computes; on a GPU
    "plain_causal" for causal models without a sliding window, "sdpa" for all others."""
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if capped or torch.device(device).type == "cpu":
        return "eager"
    sliding = getattr(config, "sliding_window", None) is not None
    return "plain_causal" if causal and not sliding else "sdpa"


def _plain_causal(module, query, key, value, mask, scaling=None, dropout=0.0, **rest):
    """Attention [b, tokens, heads, width] to all that came before; what is padded comes after.

    No mask is built: transformers would ask the device for it, and a step could not become a CUDA
    graph.
    """
    many = True if query.shape[2] > 1 else False  # noqa: SIM210 - a symbol where compiled
    seen = F.scaled_dot_product_attention(
        query, key, value, is_causal=many, scale=scaling, enable_gqa=True
    )
    return seen.transpose(1, 2).contiguous(), None


AttentionInterface.register("plain_causal", _plain_causal)
