"""Base models, loaded by name from any source. Adding a model is one entry of `registry.py`."""

import hashlib
import json
import shlex
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from oral_lib import seeds
from oral_lib.assets import sources
from oral_lib.assets.cache import cache_dir, folder_fault, weights_hash
from oral_lib.devices import fast_dtype
from oral_lib.errors import PreflightError
from oral_lib.models.base import BaseModel, attention, check_fit, reading
from oral_lib.models.registry import BaseSpec, lineage, spec
from oral_lib.tasks.rows import FILLER
from oral_lib.tasks.task import load_task, task_names


def load(
    name: str,
    *,
    source: str = "packages",
    labels: int = 2,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    words: str = "language",
) -> BaseModel:
    """The base model called `name`, frozen, in the dtype that `device` computes fastest.

    `words` is the family of tasks whose words one that is made on the spot knows.
    PreflightError, with what to do, when it is not there: a version of a model that has yet to be
    made is never made here.
    """
    entry = spec(name)
    dtype = dtype or fast_dtype(device)
    folder = _folder(entry, source)
    if entry.family == "diffusion":
        from oral_lib.models import latent_diffusion  # need diffusers

        folder = folder or latent_diffusion.ensure(entry)
        return latent_diffusion.load(entry, folder, device, dtype)
    if entry.family == "multimodal":
        from oral_lib.models import two_tower  # open_clip is slow to import, too

        return two_tower.load(entry, folder, device, dtype)
    if entry.family == "vision-language":
        from oral_lib.models import vision_language  # it needs timm, as vision does

        made = None if folder else word_tokenizer("multimodal")
        return vision_language.load(entry, folder, device, dtype, made)
    if entry.family == "vision":
        from oral_lib.models import vision  # timm is slow to import

        return vision.load(entry, folder, device, dtype)
    if folder is None:
        model, tokenizer = _tiny(entry, labels, words)
        if torch.device(device).type == "cuda":
            how = attention(model.config, device, entry.family == "causal")
            model.set_attn_implementation(how)
    else:
        causal = entry.family == "causal"
        kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        how = {"use_safetensors": True, "output_loading_info": True}
        how |= {} if causal else {"num_labels": labels}
        with reading(folder, entry.name):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            config = AutoConfig.from_pretrained(folder)
            how["attn_implementation"] = attention(config, device, causal)
            model, found = kind.from_pretrained(folder, **how)
        heads = () if causal else ("classifier.", "cls.")  # its own is new, others go
        check_fit(folder, found, new=heads[:1], over=heads)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left" if entry.family == "causal" else "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.name_or_path = entry.hub  # what PEFT writes into adapters
    for weight in model.parameters():  # not the frequencies of positions: rounded they are others
        weight.data = weight.data.to(dtype)
    model = model.to(device)
    return BaseModel(entry, model, tokenizer, labels=labels)


def _folder(entry: BaseSpec, source: str) -> Path | None:
    """Where the weights of `entry` lie; None: they are made on the spot."""
    if entry.parent or entry.alignment:
        return made_dir(entry.name, source)
    return entry.asset and sources.model_dir(entry.asset, source=source)


def made_dir(name: str, source: str = "packages") -> Path:
    """`version_dir` of what is there and whole; PreflightError, with the command that makes it, of
    anything else."""
    folder, how = version_dir(name, source), "align" if spec(name).alignment else "evolve"
    if sources.local_model(name, source) or not (fault := folder_fault(folder)):
        return folder
    command = ["python", "-m", "oral_lib", how, "--base", name]
    command += ["--source", source] if source not in ("packages", "made") else []
    what = fault if folder.is_dir() else f"{name} has yet to be made"
    raise PreflightError(f"{what}: run {shlex.join(command)} first.")


def version_dir(name: str, source: str = "packages") -> Path:
    """The folder of an evolved version or of two aligned towers: the user's own, or in the cache by
    all that goes into it, which is the recipe and the weights, and pairs, that it is made of."""
    if own := sources.local_model(name, source):
        return own
    first, entry = lineage(name)[0], spec(name)
    if recipe := entry.alignment:
        from oral_lib.models import two_tower

        parts = [two_tower.digest(recipe, source)]
        parts += [_origin(spec(n), source, entry.family) for n in (recipe.image, recipe.text)]
        made_of = [asdict(recipe), entry.pixels, *parts]
    else:
        made_of = [asdict(entry.evolution), _origin(first, source)]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:10]
    return cache_dir() / "models" / f"{name}-{key}"


def _origin(entry: BaseSpec, source: str, words: str = "language") -> str:
    """What tells the weights of a released model, or of one made on the spot, from others."""
    if entry.asset is None:
        return " ".join(sorted(word_tokenizer(words).get_vocab()))
    return weights_hash(sources.model_dir(entry.asset, source=source))


def _tiny(entry: BaseSpec, labels: int, words: str) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    tokenizer = word_tokenizer(words)
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

    words = set(FILLER)
    for task in map(load_task, task_names(family)):
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
