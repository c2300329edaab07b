# %% [markdown]
# # Pictures and words: one task on two towers
#
# The claim: an adapter that spans two networks is generated like any other. An image tower and a
# text tower were aligned once; LoRA sits on both, and where a task asks questions, a small fusion
# of what the towers say belongs to the adapter. The doubt: two towers that meet only at their ends
# can compare, but hardly count or reason. So every table shows what each kind of question adds.

# %% tags=["parameters"]
task = "flickr8k"
towers = "tiny-towers"
seed = 0
scale = "smoke"
source = "packages"
out = ""

# %%
import oral_lib

run = oral_lib.Run(scale, source, out, "multimodal")
run.check(task, towers)
run.ready()
spec = oral_lib.load_task(task)
base = run.base(towers)
print(f"{spec.description}\nsource {run.source}\n{base.describe()}")

# %% [markdown]
# ## The base model: two released networks, aligned
# Both towers are locked; a linear projection of each into a shared space is trained on pairs of
# training rows. Recall@k is the share of queries that find one of their own among the k closest,
# here among pictures and texts that the alignment did not read. A vision-language model is one
# network as it was released: nothing is aligned, LoRA sits on its language model, no fusion is
# needed.

# %%
import pandas as pd

from oral_lib import storage
from oral_lib.report import cell_figures, comparisons
from oral_lib.report.comparisons import contrasts
from oral_lib.report.findings import verdict

recall = {}
if base.spec.alignment:
    about = storage.read_json(run.align(towers))
    print(f"{about['pictures']} pictures, {about['texts']} texts of {about['task']}; "
          f"loss {about['losses'][0]:.2f} to {about['losses'][-1]:.2f} in {about['seconds']:.0f} s")  # fmt: skip
    recall = {"before": about["recall_before"], "after": about["recall_after"]}
pd.DataFrame(recall)

# %% [markdown]
# ## The zoo
# One shared start for both towers and the fusion; the seed decides the order of the data. A task of
# matching asks nothing of the fusion, which then stays as it started: all tasks have one layout.

# %%
members = run.members(towers)
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
# Held-out rows as the base model, a trained and a generated adapter judge them. Of matching: which
# of the eight texts each finds closest to the picture. Of questions: the answer.

# %%


rows = list({row.image: row for row in oral_lib.task_rows(spec, run.source).test[:60]}.values())[:8]
trained = next(m.tensors for m in members if m.task == task)
[made] = run.generator().generate(spec.description, towers, 1, seed)
adapters = {"base": base.lora_init(), "trained": trained, "generated": made}
said, _ = oral_lib.compare(base, spec, rows, adapters)
cell_figures.example_images(base.shown(rows), said)

# %% [markdown]
# ## Every method on the same rows
# *Trained* is the mark to reach, *base* what the alignment alone can do. Of matching, accuracy is
# recall@1 over both ways.

# %%
metrics, items = run.cell(task, towers, seed)
accuracy = metrics[metrics.metric == "accuracy"]
accuracy[["method", "condition", "value", "ci_low", "ci_high", "n_items", "n_samples"]].round(3)

# %%
cell_figures.methods(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## Recall both ways, or each kind of question

# %%
parts = metrics[~metrics.metric.isin(["accuracy", "auc", "calibrated_accuracy"])]
parts = parts[parts.condition.isin(["none", "matched"])]
parts.pivot_table("value", "method", "metric", sort=False).round(3)

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
