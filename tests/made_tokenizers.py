"""Small tokenizers of the kinds that released models have, and a small model under each."""

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from oral_lib.models import registry
from oral_lib.models.text import CausalModel
from oral_lib.tasks.task import load_task, task_names

MARK = "\u2581"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
LETTERS = [*map(chr, range(32, 127)), "\n", "\t", MARK]
BOS_ONLY = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
BOS_AND_EOS = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
)


def training_texts():
    """Label words of all tasks, often enough that each becomes one token, and words around them."""
    labels = [w for name in task_names() for w in load_task(name).labels if " " not in w]
    return [f" {word}" for word in labels * 20] + ["Question: Answer: the cup was big"] * 3


def byte_level():
    """GPT-2's kind: a BPE of bytes, in which a space begins the next word."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(training_texts(), trainer)
    return core


def llama():
    """Llama-2's kind: a BPE with bytes for the rest; a space mark is put before each text."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace(MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=LETTERS,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
    )  # fmt: skip
    core.train_from_iterator([word for text in training_texts() for word in text.split()], trainer)
    core.post_processor = BOS_ONLY
    return core


def unigram():
    """SentencePiece's unigram with its word marks, as of T5 and of Mistral's converted files."""
    pieces = [(piece, 0.0) for piece in SPECIAL] + [(letter, -10.0) for letter in LETTERS]
    frequent = dict.fromkeys(word for text in training_texts() for word in text.split())
    pieces += [(MARK + word, -3.0) for word in frequent]
    core = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("<unk>")))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    core.post_processor = BOS_ONLY
    return core


def ends_with_eos():
    """A tokenizer with `add_eos_token`: each text ends with the end-of-text token."""
    core = byte_level()
    core.post_processor = BOS_AND_EOS
    return core


def across_words():
    """A BPE without word boundaries: `the cup was big` is one token."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=SPECIAL, show_progress=False, initial_alphabet=LETTERS
    )
    core.train_from_iterator(["the cup was big", "the cup ran away", "it was big"] * 30, trainer)
    return core


def wrapped(core):
    """The tokenizer as transformers has it."""
    names = ("pad_token", "bos_token", "eos_token", "unk_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **dict(zip(names, SPECIAL, strict=True)), padding_side="right"
    )


def small_model(core, name="smollm2-135m"):
    """A base model in float32 of two small random layers under the tokenizer `core`."""
    tokenizer = wrapped(core)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    return CausalModel(registry.spec(name), model, tokenizer)


@torch.inference_mode()
def likelihood(base, context, continuation):
    """Log-likelihood of the ids `continuation` after the ids `context`, from the logits."""
    likely = base.model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
    rows = range(len(context) - 1, len(context) + len(continuation) - 1)
    return sum(likely[i, token].item() for i, token in zip(rows, continuation, strict=True))


# ---------------------------------------------------------------- any tokenizer
PIECES = "the cup was big ran away it yes no a an Answer: 12 3.5 don't Café 日本 (x) , ! \n  ab abc"


def random_text(draw, longest):
    """Up to `longest` words, numbers and signs; `draw` is a random.Random."""
    return " ".join(draw.choice(PIECES.split(" ")) for _ in range(draw.randint(1, longest)))


def random_tokenizer(draw):
    """A tokenizer of a random kind, trained on random text."""
    texts, flip = [random_text(draw, 6) for _ in range(40)] * 3, draw.random
    kind = draw.choice(("bpe", "byte", "llama", "metaspace", "unigram", "wordpiece", "wordlevel"))
    options = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == "bpe":
        core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=flip() < 0.5))
        core.decoder = decoders.Fuse() if flip() < 0.5 else None
        options |= {"vocab_size": draw.randint(80, 300), "initial_alphabet": LETTERS}
        core.train_from_iterator(texts, trainers.BpeTrainer(**options))
    elif kind == "byte":
        core = byte_level()
        core.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=flip() < 0.3, use_regex=flip() < 0.7
        )
        options |= {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        core.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=draw.randint(260, 400), **options)
        )
    elif kind == "llama":
        core = llama()
        if flip() < 0.5:  # tokens across words
            options["special_tokens"] = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
            options |= {"vocab_size": 600, "initial_alphabet": LETTERS}
            core.train_from_iterator(texts, trainers.BpeTrainer(**options))
    elif kind == "metaspace":
        core, scheme = (
            Tokenizer(models.BPE(unk_token="<unk>")),
            draw.choice(("first", "never", "always")),
        )
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=flip() < 0.5)
        core.decoder = decoders.Metaspace(prepend_scheme=scheme)
        options |= {"vocab_size": 300, "initial_alphabet": LETTERS}
        core.train_from_iterator(texts, trainers.BpeTrainer(**options))
    elif kind == "unigram":
        core = unigram()
        if flip() < 0.5:
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif kind == "wordpiece":
        core = Tokenizer(models.WordPiece(unk_token="<unk>"))
        core.normalizer = normalizers.BertNormalizer()
        core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        core.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=200, **options))
    else:
        core = Tokenizer(models.WordLevel(unk_token="<unk>"))
        core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
        core.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=50, **options))
    template = draw.choice(("", "<s> $A", "<s> $A </s>", "$A </s>"))
    if template:
        core.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return core
