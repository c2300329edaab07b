"""The condition c = [c_text ; c_model]: what the task is, in words, and what the base model is.

c_text is a sentence embedding of the task's description by a frozen encoder. c_model is the same
embedding of the base model's structure in words and, in the `fingerprint` arm, a sketch of its very
weights: versions of one model share their structure and differ only there.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from oral_lib import seeds
from oral_lib.assets import sources
from oral_lib.basemodel import FINGERPRINT, check_fit, reading
from oral_lib.bases import word_tokenizer
from oral_lib.errors import UsageError, closest

ENCODERS = {  # name -> width e
    "minilm-l6": 384,
    "minilm-l3": 384,
    "minilm-l6-words": 384,
    "tiny": 64,
}
ARMS = ("fingerprint", "describe")


class TextEncoder:
    """A frozen sentence encoder: token states averaged over the mask, scaled to length 1.

    "minilm-l6" is all-MiniLM-L6-v2, "minilm-l3" paraphrase-MiniLM-L3-v2; "minilm-l6-words" reads
    the bare word pieces, by the vectors that enter MiniLM-L6, and so knows no order; "tiny" is made
    on the spot for the smoke scale. Float32 on the CPU: a few sentences a run, and the same
    embedding on every machine.
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
            how = {"use_safetensors": True, "output_loading_info": True}
            with reading(folder, f"text encoder {name}"):
                self.tokenizer = AutoTokenizer.from_pretrained(folder)
                self.model, found = AutoModel.from_pretrained(
                    folder, add_pooling_layer=False, **how
                )
            check_fit(folder, found, over=("pooler.", "cls.", "classifier."))
        self.model = self.model.float().requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """[b, e] unit embeddings of `texts`."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.name.endswith("-words"):
            states = self.model.get_input_embeddings()(ids)  # [b, t, e]
            frame = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
            words = mask * ~frame  # marks around a text are no words, unless there is nothing else
            mask = torch.where(words.any(-1, keepdim=True), words, mask)
        else:
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        mask = mask.unsqueeze(-1).float()
        mean = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        return F.normalize(mean, dim=-1)


@cache
def text_encoder(name: str, source: str = "packages") -> TextEncoder:
    """The encoder called `name`, loaded once a process."""
    return TextEncoder(name, source=source)


class Condition(nn.Module):
    """Fuses text [b, e], structure [b, e] and fingerprint [b, f] into c [b, m].

    A dropped or empty text becomes a learned vector, so that the generator can be guided and can be
    asked without words. In the `describe` arm the fingerprint is not read at all.
    """

    def __init__(self, embedding: int, width: int, arm: str = "fingerprint"):
        super().__init__()
        if arm not in ARMS:
            raise UsageError(f"base condition {arm!r}: use one of {ARMS}.{closest(arm, ARMS)}")
        self.arm = arm
        self.no_text = nn.Parameter(torch.zeros(embedding))
        self.text = nn.Linear(embedding, width)
        self.structure = nn.Linear(embedding, width)
        self.fingerprint = nn.Linear(FINGERPRINT, width) if arm == "fingerprint" else None
        self.fuse = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, text: Tensor, given: Tensor, structure: Tensor, fingerprint: Tensor):
        """c [b, m]; `given` [b] bool says whose text is to be read. Unit vectors of e values are
        scaled to unit size a value, as everything else that enters a linear layer here."""
        text = torch.where(given[:, None], text * text.shape[-1] ** 0.5, self.no_text)
        c = self.text(text) + self.structure(structure * structure.shape[-1] ** 0.5)
        if self.fingerprint is not None:
            c = c + self.fingerprint(F.layer_norm(fingerprint, fingerprint.shape[-1:]))
        return self.fuse(c)
