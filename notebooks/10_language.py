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
answers = ", ".join(spec.labels) or "written"
print(f"{spec.description}\nanswers: {answers}\nbase model: {base}, source {run.source}")

# %% [markdown]
# ## The zoo
# Adapters trained from one shared start; the seed decides the order of the data. The lab scale
# chooses learning rate and steps for each task, on validation rows cut from the training rows; the
# other scales have fixed ones. The table below has test rows only.

# %%
import pandas as pd

held = pd.DataFrame(
    {"task": m.task, "lr": m.info["recipe"]["lr"], "steps": m.info["recipe"]["steps"],
     "adapters": 1, "validation accuracy": m.info["validation_accuracy"],
     "last loss": m.info["losses"][-1]}
    for m in run.members(base)
)  # fmt: skip
held["validation accuracy"] = pd.to_numeric(held["validation accuracy"])
held.groupby(["task", "lr", "steps"]).agg(
    {"adapters": "sum"} | dict.fromkeys(held.columns[4:], "mean")
)

# %% [markdown]
# A row a task; where answers are written there is no validation accuracy. Further seeds were held
# out: no generator, soup or retrieval has seen them. They count as *trained* below, and they are
# what generated adapters are compared with when it is asked whether those are new.

# %% [markdown]
# ## Every method on the same rows
# *Trained* is the mark to reach, *base* and *majority* the floor. *Gaussian* draws every weight by
# itself, *noise* is added to trained adapters: what a cloud round the zoo is worth. What does not
# depend on the generator is measured with seed 0 alone.

# %%
metrics, items = run.cell(task, base, seed)
accuracy = metrics[metrics.metric == "accuracy"]
accuracy[["method", "condition", "value", "ci_low", "ci_high", "n_items", "n_samples"]].round(3)

# %%
from oral_lib.report import cell_figures, comparisons
from oral_lib.report.comparisons import contrasts
from oral_lib.report.findings import verdict

cell_figures.methods(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## Does the sentence matter?
# The same generator asked with its own text, unseen wording, other tasks' texts, random words and
# no words (the last three on fewer rows at some scales). If the bars were level, the condition would
# do nothing.

# %%
cell_figures.conditions(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## In words

# %%


summary, cells = verdict(contrasts(items))
print(*summary, *cells, sep="\n\n")
