# %% [markdown]
# # Train a generator on your own adapters
#
# `oral_lib.method` and `oral_lib.lora` need no registry, no task files, no cache and no network.
# They need LoRA adapters in PEFT's format, a text for each of them and the base model's weights.
#
# This notebook makes six small adapters with plain PEFT: two tasks, three seeds each, one shared
# LoRA initialisation. It trains a generator on them, generates new adapters from sentences that the
# generator has not read, and loads them with PEFT. Then it repeats the steps with adapters from
# independent initialisations, shows what goes wrong, and what `lora.gauge` mends.

# %% tags=["parameters"]
seeds = 3  # 2 or more; adapters of each task
steps = 200  # 1 or more; training steps of an adapter
generator_steps = 300  # 1 or more; training steps of the generator
out = ""  # folder of the adapters; empty: a temporary one

# %%
import oral_lib  # first: it lets peft import where builds of torch and torchvision do not match

print("oral_lib", oral_lib.__version__)

# %%
import itertools
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from sklearn.feature_extraction.text import HashingVectorizer
from transformers import BertConfig, BertForSequenceClassification

from oral_lib import lora, method
from oral_lib.lora import gauge
from oral_lib.lora.peft_folder import Card

plt.rcdefaults()  # the same figure whatever a matplotlibrc says
torch.set_num_threads(1)
folder = Path(out or tempfile.mkdtemp())

# %% [markdown]
# ## A base model and two tasks
# The base model is a small BERT with random weights. Its sentences have three words. The first task
# depends on the adjective, the second on the noun.

# %%
ADJECTIVES = ["bright", "cheerful", "kind", "sunny", "bleak", "cruel", "gloomy", "sour"]
NOUNS = ["cat", "horse", "sparrow", "wolf", "bridge", "hammer", "lamp", "tower"]
VERBS = ["falls", "stands", "turns", "waits", "moves", "shines"]
WORDS = {word: i for i, word in enumerate([*ADJECTIVES, *NOUNS, *VERBS])}
sentences = [" ".join(words) for words in itertools.product(ADJECTIVES, NOUNS, VERBS)]
ids = torch.tensor([[WORDS[word] for word in s.split()] for s in sentences])  # [384, 3]
labels = {
    "mood": torch.tensor([s.split()[0] in ADJECTIVES[:4] for s in sentences]).long(),
    "animal": torch.tensor([s.split()[1] in NOUNS[:4] for s in sentences]).long(),
}
order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0))
train_rows, test_rows = order[:256], order[256:]


def base_model():
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = BertConfig(vocab_size=len(WORDS), initializer_range=0.2, num_labels=2, **sizes)
    return BertForSequenceClassification(config).eval()


# %% [markdown]
# ## Six adapters, trained with plain PEFT
# `torch.manual_seed(start)` before `get_peft_model` fixes the LoRA initialisation. Adapters with the
# same initialisation can be averaged and compared value by value; others cannot, as shown below. The
# strong weight decay removes most of the random initialisation, so that the seeds of a task learn
# similar weight changes.

# %%
config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value", "dense"])


def lora_model(start):
    base = base_model()
    torch.manual_seed(start)
    return get_peft_model(base, config)


def train_adapter(task, seed, start):
    model = lora_model(start)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-3, weight_decay=4.0)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = train_rows[torch.randint(len(train_rows), (32,), generator=draws)]
        loss = model(input_ids=ids[rows], labels=labels[task][rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = folder / f"start-{start}" / f"{task}-{seed}"
    model.save_pretrained(path)
    return path


jobs = [(task, seed) for task in labels for seed in range(seeds)]
paths = [train_adapter(task, seed, start=0) for task, seed in jobs]
tasks = [task for task, _ in jobs]
print(*(path.relative_to(folder) for path in paths), sep="\n")

# %% [markdown]
# ## Tokens, texts, training
# `lora.load` reads the folders and `Layout` cuts them into tokens. Any frozen text encoder serves;
# here it is a hashed bag of words, so that nothing is downloaded. `fingerprint` describes the base
# model by its weights.

# %%
WORDINGS = {
    "mood": [
        "Is the mood cheerful?",
        "Decide whether the adjective sounds cheerful or gloomy.",
        "Does the sentence sound positive?",
        "Tell a cheerful sentence from a gloomy one.",
    ],
    "animal": [
        "Is it about an animal?",
        "Decide whether the noun is an animal or a thing.",
        "Does the sentence name an animal?",
        "Tell an animal from a thing.",
    ],
}
HELD_OUT = {"mood": "Does the adjective sound cheerful?", "animal": "Is the noun an animal?"}
encoder = HashingVectorizer(n_features=64)


def encode_texts(texts):
    return torch.from_numpy(encoder.transform(texts).toarray()).float()  # [texts, 64]


texts = {task: encode_texts(wordings) for task, wordings in WORDINGS.items()}
description = encode_texts(["BERT, 2 layers, width 64, 4 heads"])[0]
weights = {n: w for n, w in base_model().named_parameters() if n.endswith("query.weight")}

# %%
settings = method.GeneratorConfig(
    k=256,
    components=8,
    recurrence=method.RecurrenceConfig(width=64, state=16, head=32, chunk=16),
    denoiser=method.DenoiserConfig(hidden=128, depth=2, skip=False),
)


def train_generator(start, adapters):
    layout = method.Layout.of(start, settings.k)
    data = method.TrainingSet.of(layout, start, adapters, tasks, texts, settings)
    torch.manual_seed(0)
    model = method.ORAL(settings, {"mine": data.base(description, method.fingerprint(weights))})
    training = method.TrainingConfig(steps=generator_steps, lr=3e-3, warmup=20, text_noise=0.5)
    return method.train(model, {"mine": data}, training)


start = get_peft_model_state_dict(lora_model(start=0))
adapters = [lora.load(path)[0] for path in paths]
model, losses = train_generator(start, adapters)
layout = model.bases["mine"].layout
print(f"{layout.l} tokens of {layout.k} values, loss {losses[0]:.2f} -> {losses[-1]:.3f}")

# %% [markdown]
# ## Generate, save, load with PEFT
# A sentence becomes a condition, the condition and noise become tokens, the tokens become tensors.

# %%
sampling = method.SamplingConfig(steps=10)


def generate(model, text, seed=0):
    draws = torch.Generator().manual_seed(seed)
    c = model.conditions("mine", encode_texts([text]), torch.tensor([True]))  # [1, m]
    tokens = model.sample("mine", c, model.noise("mine", sampling, draws)[None], sampling)
    entry = model.bases["mine"]
    return method.decode(entry.layout, entry.statistics.denormalise(tokens))[0]


generated = {}
for task, text in HELD_OUT.items():
    card = Card(text, base="a small BERT", generator="this notebook", seed=0)
    generated[task] = lora.save(
        folder / "generated" / task, generate(model, text), config, card, overwrite=True
    )
print(sorted(path.name for path in generated["mood"].iterdir()))


# %%
@torch.no_grad()
def answers(model):
    return model(input_ids=ids[test_rows]).logits.argmax(-1)  # [128]


predictions = pd.DataFrame({"sentence": [sentences[i] for i in test_rows]})
predictions["base"] = answers(base_model()).tolist()
for task, path in generated.items():
    predictions[f"{task}: generated"] = answers(
        PeftModel.from_pretrained(base_model(), path)
    ).tolist()
    predictions[f"{task}: right"] = labels[task][test_rows].tolist()
predictions.head(8)

# %% [markdown]
# The held-out sentence chose the task. The table below gives the share of right answers on the 128
# test sentences. "wrong text" is the adapter that was generated from the other task's sentence.


# %%
def accuracy(tensors, task):
    model = lora_model(start=0)
    model.load_state_dict(
        {n.replace(".weight", ".default.weight"): t for n, t in tensors.items()}, strict=False
    )
    return (answers(model) == labels[task][test_rows]).float().mean().item()


def average(tensors):
    return {name: torch.stack([one[name] for one in tensors]).mean(0) for name in tensors[0]}


def summary(model, start, adapters):
    rows = {}
    for task, other in (("mood", "animal"), ("animal", "mood")):
        mine = [adapter for adapter, name in zip(adapters, tasks, strict=True) if name == task]
        rows[task] = {
            "base": accuracy(start, task),
            "trained": sum(accuracy(adapter, task) for adapter in mine) / len(mine),
            "adapter average": accuracy(average(mine), task),
            "generated": accuracy(generate(model, HELD_OUT[task]), task),
            "wrong text": accuracy(generate(model, HELD_OUT[other]), task),
        }
    return pd.DataFrame(rows).T


shared = summary(model, start, adapters)
shared.style.format("{:.0%}")

# %% [markdown]
# ## Independent initialisations
# Now each adapter starts from its own draw. One weight change has many factors,
# B A = (B R)(R⁻¹ A), and each run has its own R. Factors of different runs cannot be averaged, and
# a generator learns from values that have no common meaning. There is no shared initialisation to
# centre on, so all-zero tokens decode to factors of zero, which are the base model, too.
#
# `gauge.aligned` mends this: it takes balanced factors from the singular value decomposition of B A
# and rotates them to agree with a reference adapter. The weight changes stay the same.

# %%
paths = [train_adapter(task, seed, start=1 + i) for i, (task, seed) in enumerate(jobs)]
independent = [lora.load(path)[0] for path in paths]
aligned = [gauge.aligned(adapter, independent[0]) for adapter in independent]
zeros = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
results = {"shared initialisation": shared}
for name, zoo in (("independent", independent), ("independent, aligned", aligned)):
    results[name] = summary(train_generator(zeros, zoo)[0], zeros, zoo)
table = pd.concat(results)
table.style.format("{:.0%}")

# %% [markdown]
# The figure shows how alike two adapters are, as the cosine of their values minus the
# initialisation. With a shared initialisation the seeds of a task resemble each other; tasks do so
# less, and what they share is the decay of the initialisation. Independent adapters resemble one
# another only after alignment.


# %%
def cosines(adapters, start):
    values = torch.stack(
        [torch.cat([(a[n] - start[n]).flatten() for n in start]) for a in adapters]
    )
    values = torch.nn.functional.normalize(values, dim=1)
    return (values @ values.T).round(decimals=1) + 0.0  # [adapters, adapters], no -0.0


names = [f"{task} {seed}" for task, seed in jobs]
cases = {"shared initialisation": (adapters, start), "independent": (independent, zeros),
         "independent, aligned": (aligned, zeros)}  # fmt: skip
figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
for axis, (name, case) in zip(axes, cases.items(), strict=True):
    sns.heatmap(
        cosines(*case), vmin=-1, vmax=1, cmap="vlag", annot=True, fmt=".1f", square=True,
        xticklabels=names, yticklabels=names, cbar=False, ax=axis,
    )  # fmt: skip
    axis.set_title(f"{name} (n = {len(names)})")
plt.show()

# %% [markdown]
# **What to conclude.** Train all adapters of a base model from one LoRA initialisation if you can:
# call `torch.manual_seed` with the same number before `get_peft_model`. If you only have adapters
# from independent initialisations, align them first, and compare the generator with the trained
# adapters before you rely on it. The adapter average in the same table says what
# a method without a generator does.
#
# The same from the command line: `python -m oral_lib train --manifest FILE --save FOLDER`. FILE has
# JSON lines with `path`, `text` and optionally `base`, a description of the base model.
