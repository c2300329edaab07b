# %% [markdown]
# # Vision: one task on one image backbone
#
# The claim: the method does not care what the adapter adapts. The same zoo, tokens, generator and
# evaluation serve a convolutional network; LoRA sits on its convolutions, and the classification
# head is generated with it. The doubt of every vision table: a linear probe on the frozen features
# may be all it takes. So it stands beside the others.

# %% tags=["parameters"]
task = "easy_vqa_shape"
backbone = "tiny-convnet"
seed = 0
scale = "smoke"
source = "packages"
out = ""

# %%
import oral_lib

run = oral_lib.Run(scale, source, out, "vision")
run.check(task, backbone)
run.ready()
spec = oral_lib.load_task(task)
base = run.base(backbone)
print(
    f"{spec.description}\nanswers: {', '.join(spec.labels)}\nsource {run.source}\n{base.describe()}"
)

# %% [markdown]
# ## The zoo
# As for language: one shared start, the seed decides the order of the data. Depthwise convolutions
# carry no LoRA, BatchNorm keeps the statistics it came with. Of the head a task trains its own
# classes; the rest stays as it started, so that all tasks of a backbone have one layout.

# %%
import pandas as pd

members = run.members(backbone)
held = pd.DataFrame(
    {"task": m.task, "lr": m.info["recipe"]["lr"], "steps": m.info["recipe"]["steps"],
     "adapters": 1, "validation accuracy": m.info["validation_accuracy"],
     "last loss": m.info["losses"][-1]}
    for m in members
)  # fmt: skip
held.groupby(["task", "lr", "steps"]).agg(
    {"adapters": "sum"} | dict.fromkeys(held.columns[4:], "mean")
)

# %% [markdown]
# ## Pictures and answers
# Held-out pictures as the backbone reads them: what is so, and what the untouched base model (its
# head knows nothing yet), a trained and a generated adapter say.

# %%
from oral_lib.report import cell_figures, comparisons
from oral_lib.report.comparisons import contrasts
from oral_lib.report.findings import verdict

rows = oral_lib.task_rows(spec, run.source).test[:8]
trained = next(m.tensors for m in members if m.task == task)
[made] = run.generator().generate(spec.description, backbone, 1, seed)
adapters = {"base": base.lora_init(), "trained": trained, "generated": made}
said, _ = oral_lib.compare(base, spec, rows, adapters)
cell_figures.example_images(base.shown(rows), said.drop(columns="text"))

# %% [markdown]
# ## Every method on the same pictures
# *Trained* is the mark to reach; *linear probe* is a head fitted to the frozen features, its
# strength chosen on validation rows: what lies above it is what LoRA adds.

# %%
metrics, items = run.cell(task, backbone, seed)
accuracy = metrics[metrics.metric == "accuracy"]
accuracy[["method", "condition", "value", "ci_low", "ci_high", "n_items", "n_samples"]].round(3)

# %%
cell_figures.methods(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## Does the sentence matter?
# The same generator asked with its own text, unseen wording, other tasks' texts, random words and
# no words. If the bars were level, the condition would do nothing.

# %%
cell_figures.conditions(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## In words

# %%


summary, cells = verdict(contrasts(items))
print(*summary, *cells, sep="\n\n")
