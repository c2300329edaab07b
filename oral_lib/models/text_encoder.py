"""The frozen sentence encoder that embeds task texts and descriptions of base models."""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
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
from oral_lib.models.text import word_tokenizer

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
