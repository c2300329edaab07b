# %% [markdown]
# # Language: one task on one base model
#
# The claim: an adapter generated from a sentence does what a trained one does. The doubt: a mean of
# the zoo, the nearest zoo adapter or a plain regression might do it too, and the sentence might not
# matter. So every baseline and every control is measured on the same held-out rows.

# %% tags=["parameters"]
task = "movie"
base = "tiny-encoder"
seed = 0
scale = "smoke"
source = "packages"
out = ""

# %%
import oral_lib

run = oral_lib.Run(scale, source, out)
run.check(task, base)
run.ready()
spec = oral_lib.load_task(task)
print(
    f"{spec.description}\nanswers: {', '.join(spec.labels)}\nbase model: {base}, source {run.source}"
)

# %% [markdown]
# ## The zoo
# Adapters trained from one shared start; the seed decides the order of the data. Learning rates were
# chosen on validation rows, which the table below never touches.

# %%
import pandas as pd

pd.DataFrame(
    {"task": m.task, "seed": m.seed, "validation accuracy": m.info["validation_accuracy"],
     "last loss": m.info["losses"][-1], "seconds": m.info["seconds"]}
    for m in run.members(base)
)  # fmt: skip

# %% [markdown]
# ## Every method on the same rows
# *Trained* is the mark to reach, *base* and *majority* the floor.

# %%
metrics, items = run.cell(task, base, seed)
accuracy = metrics[metrics.metric == "accuracy"]
accuracy[["method", "condition", "value", "ci_low", "ci_high", "n_items", "n_samples"]].round(3)

# %%
from oral_lib import figures, tables

figures.methods(tables.pooled(accuracy), tables.per_sample(items))

# %% [markdown]
# ## Does the sentence matter?
# The same generator asked with its own text, unseen wording, another task's text, random words and
# no words. If the bars were level, the condition would do nothing.

# %%
figures.conditions(tables.pooled(accuracy), tables.per_sample(items))

# %% [markdown]
# ## In words

# %%
from oral_lib.verdict import verdict

summary, cells = verdict(tables.contrasts(items))
print(*summary, *cells, sep="\n\n")
