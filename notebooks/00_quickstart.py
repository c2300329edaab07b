# %% [markdown]
# # Quickstart: one sentence in, a working LoRA out
#
# A LoRA is usually trained: data, a loss, an hour. Here a generator produces it from one sentence.
# The generator has learned from a small zoo of trained LoRAs. Its output is the weights of an
# adapter, which PEFT loads like any other.
#
# At the smoke scale (the default) all models are tiny and created on the spot. This shows that the
# code runs. `scale = "desk"` (two CPU cores) and `scale = "lab"` (a GPU) use real models and data.

# %% tags=["parameters"]
scale = "smoke"  # one of smoke, desk, lab, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib

run = oral_lib.Run(scale, source, out).ready()
tasks = {plan.base: plan.tasks for plan in run.planned}
name = next((n for n in ("tiny-causal", "smollm2-135m") if n in tasks), next(iter(tasks)))
base = run.base(name)
print(base.describe())

# %% [markdown]
# ## Generate an adapter
# `prompt` generates it. `save` writes a standard PEFT folder with a model card.

# %%
text = "Decide whether a sentence from a movie review is positive or negative."
[lora] = oral_lib.prompt(
    text, base=base.name, generator=run.root / "generator", scale=scale, source=source
)
folder = lora.save(run.root / "quickstart-lora", overwrite=True)
print(*sorted(path.name for path in folder.iterdir()), sep="\n")

# %%
from IPython.display import Markdown

card = (folder / "README.md").read_text()
Markdown(card.split("---", 2)[2])

# %% [markdown]
# ## Load it with PEFT
# The generator is no longer needed.

# %%
from peft import PeftModel

frozen = run.base(base.name).model
model = PeftModel.from_pretrained(frozen, folder)
print(type(model).__name__, "with", len(lora.tensors), "generated tensors")

# %% [markdown]
# ## Does it do anything?
# The base model and the generated adapter answer the same test sentences.

# %%
task = oral_lib.load_task(next(t for t in ("movie", "sst2") if t in tasks[name]))
rows = oral_lib.task_rows(task, run.source).test[:100]
initial = base.lora_init()  # B = 0: equals the base model
adapters = {"base model": initial, "generated": lora.tensors}
answers, accuracy = oral_lib.compare(base, task, rows, adapters)
answers.head(8)

# %%
accuracy.to_frame().style.format("{:.0%}")

# %% [markdown]
# One sentence changed the model. `10_language` compares this change with training and with all
# baselines, and measures whether the sentence matters. `01_method` explains how it works.
