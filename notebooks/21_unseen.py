# %% [markdown]
# # Unseen tasks: what a sentence is worth where no adapter was ever trained
#
# RPG's own test, told in words. Ten classes can be split into yes and no in 1,022 ways; a LoRA with
# its head was trained for each. A generator that read 1,002 of the sentences is asked with the
# other twenty. The doubt: the nearest known task, or one LoRA for all tasks whose head reads the
# sentence, may do as well. Balanced accuracy throughout, because most splits are uneven.

# %% tags=["parameters"]
seed = 0
scale = "smoke"
source = "packages"
out = ""

# %%
import oral_lib

run = oral_lib.Run(scale, source, out, "unseen").ready()
[cells] = run.planned
first = oral_lib.load_task(cells.unseen_tasks[0])
base = run.base(cells.base)
counts = f"{len(cells.tasks)} tasks to learn from, {len(cells.unseen_tasks)} held out"
print(f"{counts}, source {run.source}")
print(base.describe(), *first.training_texts, sep="\n")

# %% [markdown]
# ## One unseen task, on pictures
# What the base model, the LoRA trained on it, and one generated from the sentence alone say.

# %%
from oral_lib.report import cell_figures, comparisons, overview_figures, tables
from oral_lib.report.comparisons import contrasts
from oral_lib.report.findings import verdict
from oral_lib.zoo import store

rows = oral_lib.task_rows(first, run.source).test[:8]
trained = store.read(run.root, cells.base, first.name, 0).tensors
[made] = run.generator().generate(first.description, cells.base, 1, seed)
adapters = {"base": base.lora_init(), "trained": trained, "generated": made}
said, _ = oral_lib.compare(base, first, rows, adapters)
cell_figures.example_images(base.shown(rows), said.drop(columns="text"))

# %% [markdown]
# ## All unseen tasks
# *best* is the best generated sample on these very rows, as RPG reports it: a ceiling. The last row
# is comparable between papers: which share of the trained LoRA's gain over chance is reached. RPG
# published, with class bits in place of words: trained 97.2, best of ten 92.9, mean 90.0.

# %%
import pandas as pd

measured = [run.cell(name, cells.base, seed) for name in cells.unseen_tasks]
items = pd.concat(frame for _, frame in measured)
tables.unseen_table(items)

# %%
overview_figures.unseen(comparisons.per_sample(items, "balanced_accuracy"))

# %% [markdown]
# ## In words

# %%


summary, _ = verdict(contrasts(items))
print(*summary, sep="\n\n")
