# %% [markdown]
# # Quickstart: one sentence in, a working LoRA out
#
# A LoRA is usually trained: data, a loss, an hour. Here it is *asked for*. A generator that has seen
# a small zoo of trained LoRAs reads one sentence and returns the weights of an adapter, which PEFT
# loads like any other.
#
# At the smoke scale (the default) all models are tiny and made on the spot: it proves that the code
# runs. `scale = "desk"` (two CPU cores) and `scale = "lab"` (a GPU) use real models and real data.

# %% tags=["parameters"]
scale = "smoke"
source = "packages"
out = ""

# %%
import oral_lib

run = oral_lib.Run(scale, source, out).ready()
planned = {cells.base: cells.tasks for cells in run.planned}
name = next((n for n in ("tiny-causal", "smollm2-135m") if n in planned), next(iter(planned)))
base = run.base(name)
print(base.describe())

# %% [markdown]
# ## Ask for an adapter
# Two lines make it; a third saves it as a standard PEFT folder with a model card.

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
# ## Load it with PEFT alone
# The generator is not needed any more: this is a PEFT folder like any other.

# %%
from peft import PeftModel

frozen = run.base(base.name).model
model = PeftModel.from_pretrained(frozen, folder)
print(type(model).__name__, "with", len(lora.tensors), "generated tensors")

# %% [markdown]
# ## Does it do anything?
# The same held-out sentences, answered by the base model and with the generated adapter.

# %%
task = oral_lib.load_task(next(t for t in ("movie", "sst2") if t in planned[name]))
rows = oral_lib.task_rows(task, run.source).test[:100]
start = base.lora_init()  # an adapter that changes nothing: the base model
adapters = {"base model": start, "generated": lora.tensors}
table, accuracy = oral_lib.compare(base, task, rows, adapters)
table.head(8)

# %%
accuracy.to_frame().style.format("{:.0%}")

# %% [markdown]
# One sentence changed the model. Whether it changed it as much as training would have, and whether
# the sentence mattered at all, is measured with all baselines in `10_language`; how it works is
# shown in `01_method`.
