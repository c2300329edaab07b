"""Base models, loaded by name from any source. Adding a model is one entry of `registry.py`."""

import hashlib
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from oral_lib import assets, seeds, tasks
from oral_lib.basemodel import FINGERPRINT, BaseModel, put, take  # noqa: F401  asked for here
from oral_lib.errors import PreflightError
from oral_lib.registry import (  # noqa: F401  asked for here by all who use a base model
    REGISTRY,
    BaseSpec,
    in_reach,
    lineage,
    names,
    root,
    spec,
)


def load(
    name: str,
    *,
    source: str = "packages",
    labels: int = 2,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> BaseModel:
    """The base model called `name`, frozen, in the dtype that `device` computes fastest.

    PreflightError, with what to do, when it is not there: a version of a model that has yet to be
    made is never made here.
    """
    entry = spec(name)
    dtype = dtype or fast_dtype(device)
    folder = _folder(entry, source)
    if entry.family == "vision":
        from oral_lib import vision  # timm is slow to import

        return vision.load(entry, folder, device, dtype)
    if folder is None:
        model, tokenizer = _tiny(entry, labels)
        if torch.device(device).type == "cuda":
            how = attention(model.config, device, entry.family == "causal")
            model.set_attn_implementation(how)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        kind = (
            AutoModelForCausalLM if entry.family == "causal" else AutoModelForSequenceClassification
        )
        extra = {} if entry.family == "causal" else {"num_labels": labels}
        config, causal = AutoConfig.from_pretrained(folder), entry.family == "causal"
        extra["attn_implementation"] = attention(config, device, causal)
        with quiet():
            model = kind.from_pretrained(folder, **extra)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left" if entry.family == "causal" else "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.name_or_path = entry.hub  # what PEFT writes into adapters
    model = model.to(device=device, dtype=dtype)
    return BaseModel(entry, model, tokenizer, labels=labels)


def _folder(entry: BaseSpec, source: str) -> Path | None:
    """Where the weights of `entry` lie; None: they are made on the spot."""
    if entry.parent:
        return made_dir(entry.name, source)
    return entry.asset and assets.model_dir(entry.asset, source=source)


def made_dir(name: str, source: str = "packages") -> Path:
    """`version_dir` of a version that is there and whole; PreflightError, with the command that
    makes it, of any other."""
    folder = version_dir(name, source)
    if assets.local_model(name, source) or not (fault := assets.fault(folder)):
        return folder
    command = ["python", "-m", "oral_lib", "evolve", "--base", name]
    command += ["--source", source] if source not in ("packages", "made") else []
    what = fault if folder.is_dir() else f"{name} has yet to be made"
    raise PreflightError(f"{what}: run {shlex.join(command)} first.")


def version_dir(name: str, source: str = "packages") -> Path:
    """The folder of an evolved version: the user's own, or in the cache by all that goes into it,
    which is the recipe and the weights that the first version was trained from."""
    if own := assets.local_model(name, source):
        return own
    first, *_, entry = lineage(name)
    if first.asset is None:
        start = " ".join(sorted(word_tokenizer().get_vocab()))
    else:
        start = assets.weights_hash(assets.model_dir(first.asset, source=source))
    made_of = json.dumps([asdict(entry.evolution), start], sort_keys=True)
    key = hashlib.sha256(made_of.encode()).hexdigest()[:10]
    return assets.cache_dir() / "models" / f"{name}-{key}"


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


def word_tokenizer(family: str = "language") -> PreTrainedTokenizerFast:
    """A word tokenizer over the words of a family's task files ("": of all): enough for the smoke
    scale."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = set(tasks.FILLER)
    for task in map(tasks.load, tasks.names(family)):
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
