"""The frozen sentence encoder that embeds task texts and descriptions of base models."""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, BertConfig, BertModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as ENCODER_KINDS,
)

from oral_lib import seeds
from oral_lib.assets import sources
from oral_lib.checkpoints.hugging_face import (
    check_vocabulary,
    pretrained,
    read_config,
    read_tokenizer,
    require_padding,
)
from oral_lib.errors import UsageError, closest
from oral_lib.models.text import TextModel, word_tokenizer

STATES_OF = 256  # texts whose hidden states are computed at once
POSITIONS = 512  # tokens of a text, if a model does not say
ENCODERS = {  # name -> width e
    "minilm-l6": 384,
    "minilm-l3": 384,
    "minilm-l6-words": 384,
    "tiny": 64,
}


class TextEncoder:
    """A frozen sentence encoder: token states averaged over the mask, scaled to length 1.

    "minilm-l6" is all-MiniLM-L6-v2 and "minilm-l3" paraphrase-MiniLM-L3-v2. "minilm-l6-words"
    averages the input embeddings of MiniLM-L6, so it ignores word order. "tiny" is random, for the
    smoke scale. Float32 on the CPU: a run embeds few sentences, and every machine computes the same
    embeddings.
    """

    def __init__(self, name: str, *, source: str = "packages"):
        if name not in ENCODERS:
            raise UsageError(f"unknown text encoder {name!r}.{closest(name, ENCODERS)}")
        self.name, self.width = name, ENCODERS[name]
        if name == "tiny":
            self.tokenizer = word_tokenizer("")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds.integer(0, "tiny-text-encoder"))
                config = BertConfig(
                    vocab_size=len(self.tokenizer),
                    hidden_size=self.width,
                    intermediate_size=2 * self.width,
                    num_hidden_layers=1,
                    num_attention_heads=4,
                )
                self.model = BertModel(config, add_pooling_layer=False)
        else:
            folder = sources.model_dir(name.removesuffix("-words"), source=source)
            what = f"text encoder {name}"
            config = read_config(folder, what, ENCODER_KINDS)
            self.tokenizer = read_tokenizer(folder, what)
            self.model = pretrained(
                AutoModel,
                folder,
                what,
                config=config,
                extra=("pooler.", "cls.", "classifier."),
                add_pooling_layer=False,
            )
            require_padding(folder, self.tokenizer)
            check_vocabulary(folder, self.tokenizer, self.model.get_input_embeddings())
            longest = getattr(config, "max_position_embeddings", None) or POSITIONS
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, longest)
        self.model = self.model.float().requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """[b, e] unit embeddings of `texts`."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        device = self.model.device  # the CPU, unless many texts are embedded
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        if ids.shape[1] == 0:  # empty texts, of a tokenizer without special tokens
            return torch.zeros(len(texts), self.width)
        if self.name.endswith("-words"):
            states = self.model.get_input_embeddings()(ids)  # [b, t, e]
            special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids, device=device))
            words = mask * ~special  # an empty text keeps its special tokens
            mask = torch.where(words.any(-1, keepdim=True), words, mask)
        else:
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        mask = mask.unsqueeze(-1).float()
        mean = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        return F.normalize(mean, dim=-1)


class HiddenStates:
    """A base model's own hidden states as text encoder: no other model need be loaded with it.

    The mean over tokens of the states after two thirds of the layers, less its mean over `texts`:
    states of all texts share a large part. With `encoder` the embedding has both, each of the
    length sqrt(1/2).

    Args:
        base: a causal model or an encoder, without adapters.
        texts: two or more.
        encoder: a sentence encoder to join.
    """

    def __init__(self, base: TextModel, texts: Sequence[str], encoder: TextEncoder | None = None):
        self.base, self.encoder = base, encoder
        self.name = f"states of {base.name}" + (f" and {encoder.name}" if encoder else "")
        self.model = nn.Identity() if encoder is None else encoder.model  # what moves to a GPU
        self.center: Tensor | float = 0.0
        self.center = self._states(texts).mean(0)
        self.width = len(self.center) + (0 if encoder is None else encoder.width)

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Tensor:
        """[b, f] mean states on the CPU, less the center."""
        base, parts = self.base, []
        core, tokenizer = base.model.base_model, base.tokenizer
        for first in range(0, len(texts), STATES_OF):
            rows = tokenizer(list(texts[first : first + STATES_OF]))["input_ids"]
            rows = [torch.tensor(ids or [tokenizer.eos_token_id or 0]) for ids in rows]
            lengths = torch.tensor([len(ids) for ids in rows])
            ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id or 0)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(base.device)
            read = core(
                ids.to(base.device), attention_mask=mask.long(), output_hidden_states=True
            ).hidden_states  # of the embedding and of every layer
            states = read[-(-2 * (len(read) - 1) // 3)].float() * mask[..., None]
            parts.append((states.sum(1) / mask.sum(1, keepdim=True)).cpu())
        return torch.cat(parts) - self.center

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[b, e] unit embeddings of `texts`, on the CPU."""
        states = F.normalize(self._states(texts), dim=-1)
        if self.encoder is None:
            return states
        return torch.cat([self.encoder.encode(texts).cpu(), states], 1) / 2**0.5


class HashedWords:
    """A text encoder without weights or files: the mean of one fixed random vector for each word.

    The vector of a word depends only on its letters, so every machine computes the same embeddings.
    Texts with common words are similar; synonyms are not.

    >>> HashedWords().encode(["Answer formally.", "Answer cheerfully."]).shape
    torch.Size([2, 384])
    """

    name, width = "hashed-words", 384

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[b, e] unit embeddings of `texts`."""
        rows = []
        for text in texts:
            words = re.findall(r"\w+", text.lower()) or [""]
            streams = (seeds.generator(0, self.name, word) for word in words)
            rows.append(sum(torch.randn(self.width, generator=stream) for stream in streams))
        return F.normalize(torch.stack(rows), dim=-1)


def load_encoder(name: str, source: str = "packages") -> TextEncoder | HashedWords:
    """The text encoder called `name`: `HashedWords`, or one of `ENCODERS` read from `source`.

    Raises:
        UsageError: an unknown name.
        PreflightError: its files are not in the asset cache.
    """
    return HashedWords() if name == HashedWords.name else TextEncoder(name, source=source)
