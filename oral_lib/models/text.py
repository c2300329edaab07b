"""Models of text: causal language models and bidirectional encoders with a classification head.

A causal model reads a prompt and is scored on what follows it; an encoder reads the bare text and
is scored on the classes of its head.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_KINDS,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as ENCODER_KINDS,
)

from oral_lib import seeds
from oral_lib.checkpoints.context import cut_contexts, cut_pairs
from oral_lib.checkpoints.hugging_face import (
    check_vocabulary,
    pretrained,
    read_config,
    read_tokenizer,
    require_padding,
)
from oral_lib.errors import UsageError
from oral_lib.models.base import BaseModel, EncodedRows
from oral_lib.models.registry import BERT_LINEARS, LLAMA_LINEARS, BaseSpec
from oral_lib.tasks.rows import FILLER, Row
from oral_lib.tasks.task import Task, valid_tasks

TOKENS = {"cpu": 2048, "cuda": 1 << 17}  # read in one batch, by device


class TextModel(BaseModel):
    """What causal models and encoders share."""

    architecture: str  # in words
    linears: tuple[str, ...]  # names of all linear layers in a block

    def describe(self) -> str:
        c = self.model.config
        heads = f"{c.num_attention_heads} heads"
        if getattr(c, "num_key_value_heads", c.num_attention_heads) != c.num_attention_heads:
            heads += f", {c.num_key_value_heads} key-value heads"
        return (
            f"A {self.architecture} of the {c.model_type} architecture with {c.num_hidden_layers} "
            f"layers, width {c.hidden_size}, {heads}, feed-forward width {c.intermediate_size} and "
            f"a vocabulary of {c.vocab_size}; LoRA of rank {self.spec.rank} on "
            f"{', '.join(self.spec.targets)}."
        )

    def batch_size(self, task: Task, groups: int = 1) -> int:
        options = 2 if self.scoring_kind(task) == "option" else 1
        return max(1, TOKENS[self.device.type] // (groups * task.max_tokens * options))

    def forward_flops(self, width: int) -> tuple[int, int]:
        head = self.model.get_output_embeddings()  # applied to one position of a row only
        linear = [m for m in self.model.modules() if isinstance(m, nn.Linear) and m is not head]
        lora = sum(tensor.numel() for tensor in self.lora_init().values())
        return 2 * width * sum(m.weight.numel() for m in linear), 2 * width * lora


class CausalModel(TextModel):
    """A causal language model, scored on what it writes after a prompt."""

    task_type = "CAUSAL_LM"
    architecture = "causal language model"
    linears = LLAMA_LINEARS

    def answer_ids(self, task: Task) -> Tensor:
        """[labels] first token of each label word behind a prompt, or indices of options."""
        if self.scoring_kind(task) != "label":
            return super().answer_ids(task)
        return first_tokens(self, task, self.prompt(task, "text"), " ")

    def encode_rows(self, task: Task, rows: Sequence[Row]) -> EncodedRows:
        """Token rows of at most `task.max_tokens`; a long row loses its beginning.

        UsageError if the tokenizer has no boundary between a context and what follows it.
        """
        kind = self.scoring_kind(task)
        if kind == "label":
            self._check_label_words(task, rows)
            ids = self.prompt_ids(task, rows)
            lengths = torch.tensor([len(row) for row in ids], device=self.device)
            return EncodedRows(self._padded(ids), lengths, lengths)
        if kind == "option":
            pairs, end = [_without_blank(pair) for row in rows for pair in row.options], []
            keys = [row.key for row in rows for _ in row.options]
        else:
            pairs = [(self.prompt(task, row.text), row.target) for row in rows]
            keys = [row.key for row in rows]
            end = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        names = [self._row_name(task, key) for key in keys]
        sequences, begins = [], []
        for name, cut in zip(names, cut_pairs(self.tokenizer, pairs, names), strict=True):
            ids, begin = cut.row(task.max_tokens, end)
            if begin < max(1, len(cut.front)):
                raise UsageError(
                    f"{name}: {len(cut.continuation)} tokens follow the context, and a row has at "
                    f"most {task.max_tokens}: raise the task's `max_tokens` or shorten the row."
                )
            sequences.append(torch.tensor(ids))
            begins.append(begin)
        lengths, begins = torch.tensor([len(ids) for ids in sequences]), torch.tensor(begins)
        return EncodedRows(
            self.embedded(pad_sequence(sequences, batch_first=True)).to(self.device),
            lengths.to(self.device),
            begins.to(self.device),
            len(rows[0].options) if kind == "option" else 1,
            int((lengths - begins).max()),
        )

    def prompt(self, task: Task, text: str) -> str:
        """The task's prompt for `text`, without spaces at its end: they belong to the answer."""
        return task.prompt(text).rstrip(" ")

    def prompt_ids(self, task: Task, rows: Sequence[Row]) -> list[list[int]]:
        """Token ids of each row's prompt: the last `task.max_tokens`, and special tokens in front.

        The same ids in scoring, in training and before a generated answer.
        """
        cuts = cut_contexts(self.tokenizer, [self.prompt(task, row.text) for row in rows])
        return [cut.row(task.max_tokens)[0] for cut in cuts]

    def tokens(self, texts: Sequence[str], max_tokens: int = 64) -> dict[str, Tensor]:
        """Right-padded ids and mask [b, tokens <= max_tokens] on the model's device; a long text
        loses its beginning."""
        ids = [cut.row(max_tokens)[0] for cut in cut_contexts(self.tokenizer, texts)]
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        padded = self._padded(ids)
        mask = torch.arange(padded.shape[1], device=self.device) < lengths[:, None]
        return {"input_ids": padded, "attention_mask": mask.long()}

    def _padded(self, ids: Sequence[list[int]]) -> Tensor:
        rows = [torch.tensor(row, dtype=torch.long) for row in ids]
        table = pad_sequence(rows, batch_first=True, padding_value=self.padding)
        return self.embedded(table).to(self.device)

    @property
    def padding(self) -> int:
        """The token that fills a batch; it is never read."""
        return self.tokenizer.pad_token_id or 0

    def _check_label_words(self, task: Task, rows: Sequence[Row]) -> None:
        """UsageError unless each row's prompt is followed by the tokens of `answer_ids`."""
        ids, words = self.answer_ids(task).tolist(), task.labels
        pairs = [(self.prompt(task, row.text), f" {word}") for row in rows for word in words]
        names = [self._row_name(task, row.key) for row in rows for _ in words]
        cuts = cut_pairs(self.tokenizer, pairs, names)
        for i, (name, cut) in enumerate(zip(names, cuts, strict=True)):
            if cut.continuation[0] != ids[i % len(words)]:
                raise UsageError(
                    f"{name}: the label word {words[i % len(words)]!r} has another first token "
                    "behind this row's prompt: use a template that ends with a word or a colon."
                )

    def _row_name(self, task: Task, key: str) -> str:
        return f"task {task.name!r}, row {key!r}, tokenizer of {self.name!r}"

    def states(self, adapted: nn.Module, batch: EncodedRows) -> Tensor:
        """[b, tokens, width] last hidden states. No mask: padding follows all that is scored."""
        return adapted.base_model(batch.ids, use_cache=False).last_hidden_state

    def answer_logits(self, adapted: nn.Module, batch: EncodedRows) -> Tensor:
        return vocabulary_logits(adapted, last_states(self.states(adapted, batch), batch))


class EncoderModel(TextModel):
    """A bidirectional text encoder with a class for every label or option of a task."""

    task_type = "SEQ_CLS"
    architecture = "bidirectional text encoder"
    linears = BERT_LINEARS

    def scoring_kind(self, task: Task) -> str:
        if super().scoring_kind(task) == "answer":
            raise UsageError(
                f"task {task.name!r} requires a written answer, and {self.name!r} is an encoder: "
                "choose a causal base model."
            )
        return "label"

    def encode_rows(self, task: Task, rows: Sequence[Row]) -> EncodedRows:
        """Token rows of at most `task.max_tokens`; a long text loses its end."""
        self.scoring_kind(task)
        batch = self.tokens([row.text for row in rows], task.max_tokens)
        lengths = batch["attention_mask"].sum(1)
        return EncodedRows(batch["input_ids"], lengths, lengths)

    def answer_logits(self, adapted: nn.Module, batch: EncodedRows) -> Tensor:
        return adapted(batch.ids, attention_mask=batch.attention_mask).logits.float()


def first_tokens(base: BaseModel, task: Task, prompt: str, space: str = "") -> Tensor:
    """[labels] first token of each label word after `prompt` and `space`.

    UsageError unless they differ.
    """
    pairs = [(prompt, space + word) for word in task.labels]
    names = [f"task {task.name!r}, tokenizer of {base.name!r}"] * len(pairs)
    ids = [cut.continuation[0] for cut in cut_pairs(base.tokenizer, pairs, names)]
    if len(set(ids)) < len(ids):
        raise UsageError(
            f"task {task.name!r}: label words {task.labels} share their first token in the "
            f"tokenizer of {base.name!r}; choose words that begin differently."
        )
    return torch.tensor(ids, device=base.device)


def _without_blank(pair: tuple[str, str]) -> tuple[str, str]:
    """(context, continuation) with the blanks at the context's end moved to the continuation."""
    context, continuation = pair
    text = context.rstrip()
    return text, context[len(text) :] + continuation


def last_states(states: Tensor, batch: EncodedRows) -> Tensor:
    """[b, width] the state of each row's last token, of states [b, tokens, width]."""
    rows = torch.arange(len(batch.ids), device=states.device)
    return states[rows, batch.lengths - 1]


def vocabulary_logits(adapted: nn.Module, states: Tensor) -> Tensor:
    """[..., vocabulary] float32 logits of the next token, of states [..., width]."""
    logits = adapted.get_output_embeddings()(states).float()
    cap = getattr(adapted.config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else cap * (logits / cap).tanh()


# ---------------------------------------------------------------- loading
def load(
    spec: BaseSpec,
    folder: Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    *,
    labels: int = 2,
    family: str = "language",
) -> TextModel:
    """The causal model or encoder in `folder`; a tiny random one if that is None.

    Args:
        labels: number of classes of an encoder's head.
        family: family of tasks whose words a tiny model's tokenizer contains.

    Raises:
        OralError: files are missing, damaged, or of another model.
    """
    causal = spec.family == "causal"
    if folder is None:
        model, tokenizer = _tiny(spec, labels, family)
        if torch.device(device).type == "cuda":
            model.set_attn_implementation(attention(model.config, device, causal))
    else:
        config = read_config(folder, spec.name, CAUSAL_KINDS if causal else ENCODER_KINDS)
        tokenizer = read_tokenizer(folder, spec.name)
        config.num_labels = labels
        options = {"config": config, "attn_implementation": attention(config, device, causal)}
        if causal:
            model = pretrained(AutoModelForCausalLM, folder, spec.name, **options)
        else:  # the head is new, and other heads are left out
            model = pretrained(
                AutoModelForSequenceClassification,
                folder,
                spec.name,
                new=("classifier.",),
                extra=("classifier.", "cls."),
                **options,
            )
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left" if causal else "right"  # an answer follows a prompt's end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if folder is not None:
        if not causal:
            require_padding(folder, tokenizer)
        check_vocabulary(folder, tokenizer, model.get_input_embeddings())
    model.name_or_path = spec.hub  # PEFT writes it into adapters
    for weight in model.parameters():  # not buffers: rounded frequencies would move positions
        weight.data = weight.data.to(dtype)
    kind = CausalModel if causal else EncoderModel
    return kind(spec, model.to(device), tokenizer, labels=labels)


def _tiny(spec: BaseSpec, labels: int, family: str) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    tokenizer = word_tokenizer(family)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,  # large: random layers must change their input for LoRA to matter
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, "tiny", spec.name))
        if spec.family == "causal":
            return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)), tokenizer
        return BertForSequenceClassification(BertConfig(**sizes, num_labels=labels)), tokenizer


def word_tokenizer(family: str = "language") -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the words of a family's task files ("": all families), for the
    smoke scale."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = set(FILLER)
    for task in valid_tasks(family):
        texts = [task.template, *task.labels, *chain(*task.marker_words), *task.training_texts]
        words.update(w for text in texts for w in text.lower().replace("{text}", "").split())
    splitter = pre_tokenizers.Whitespace()
    words = {piece for word in words for piece, _ in splitter.pre_tokenize_str(word)}
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *sorted(words)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )


# ---------------------------------------------------------------- attention
def attention(config: PretrainedConfig, device: str | torch.device, causal: bool = False) -> str:
    """Name of the attention implementation for transformers.

    "eager" on a CPU, where it makes a training step on short rows a third shorter, and for Gemma 2,
    whose capped logits only "eager" computes. On a GPU "plain_causal" for causal models without a
    sliding window, "sdpa" for all others.
    """
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if capped or torch.device(device).type == "cpu":
        return "eager"
    sliding = getattr(config, "sliding_window", None) is not None
    return "plain_causal" if causal and not sliding else "sdpa"


def _plain_causal(module, query, key, value, mask, scaling=None, dropout=0.0, **rest):
    """Attention [b, tokens, heads, width] to all earlier positions; padding comes later.

    No mask is built: transformers would wait for the device to build it, and a training step could
    not be captured as a CUDA graph.
    """
    causal = True if query.shape[2] > 1 else False  # noqa: SIM210 - a symbol where compiled
    states = F.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=scaling, enable_gqa=True
    )
    return states.transpose(1, 2).contiguous(), None


AttentionInterface.register("plain_causal", _plain_causal)
