# %% [markdown]
# # Unseen tasks: adapters for tasks without any trained adapter
#
# RPG's own test, with sentences in place of class bits. Ten classes can be split into yes and no in
# 1,022 ways; a LoRA with its head was trained for each. The generator learns from 1,002 of them and
# is tested on the sentences of the other twenty. The doubt: the adapter of the nearest training
# task may do as well, or one LoRA for all tasks with a head that depends on the sentence. All
# figures are balanced accuracy, because most splits are uneven.

# %% tags=["parameters"]
seed = 0  # 0 or more; of the generator and its samples
scale = "smoke"  # one of smoke, lab
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib

run = oral_lib.Run(scale, source, out, "unseen").ready()
[plan] = run.planned
first = oral_lib.load_task(plan.unseen_tasks[0])
model = run.base(plan.base)
print(f"{len(plan.tasks)} training tasks, {len(plan.unseen_tasks)} held out, source {run.source}")
print(model.describe(), *first.training_texts, sep="\n")

# %% [markdown]
# ## One unseen task on test images
# Answers of the base model, of the LoRA trained on the task, and of a LoRA generated from the
# sentence.

# %%
from oral_lib.report import comparisons
from oral_lib.report.figures import gallery, overview
from oral_lib.report.tables import methods
from oral_lib.zoo import store

rows = oral_lib.task_rows(first, run.source).test[:8]
trained = store.read(run.root, plan.base, first.name, 0).tensors
[generated] = run.generator().generate(first.description, plan.base, 1, seed)
adapters = {"base": model.lora_init(), "trained": trained, "generated": generated}
answers, _ = oral_lib.compare(model, first, rows, adapters)
gallery.example_images(model.display_images(rows), answers.drop(columns="text"))

# %% [markdown]
# ## All unseen tasks
# *best* is the generated sample with the highest test score, an upper bound that RPG also reports.
# The last row is comparable between papers: the share of the trained LoRA's gain over chance. RPG
# published, with class bits: trained 97.2, best of ten 92.9, mean 90.0.

# %%
import pandas as pd

items = pd.concat(run.cell(name, plan.base, seed)[1] for name in plan.unseen_tasks)
methods.unseen_table(items)

# %%
overview.gaps(comparisons.judged(items, 0, "balanced_accuracy"), "Balanced accuracy")

# %% [markdown]
# ## Findings

# %%
print(run.findings(items, by_cell=False))
