# %% [markdown]
# # Images and texts: one task on two towers
#
# The claim: an adapter that spans two networks is generated like any other. An image tower and a
# text tower were aligned once. LoRA is applied to both. For tasks with questions, a small fusion of
# the two outputs belongs to the adapter. The doubt: two towers that meet only at their ends can
# compare, but hardly count or reason. So the tables show each kind of question.

# %% tags=["parameters"]
task = "flickr8k"  # a task of the base model: python -m oral_lib tasks
base = "tiny-towers"  # a base model of the experiment: python -m oral_lib bases
seed = 0  # 0 or more; of the generator and its samples
scale = "smoke"  # one of smoke, lab, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib

run = oral_lib.Run(scale, source, out, "multimodal")
run.check(task, base)
run.ready()
spec = oral_lib.load_task(task)
model = run.base(base)
print(f"{spec.description}\nsource {run.source}\n{model.describe()}")
print(f"held-out paraphrases: {run.measured_wordings}")

# %% [markdown]
# ## The base model: two released networks, aligned
# Both towers are frozen. A linear projection of each into a shared space is trained on pairs of
# training rows. Recall@k is the share of queries with a match among the k closest, measured on
# images and texts outside the alignment data. A vision-language model is one network as it was
# released: nothing is aligned, LoRA is applied to its language model, and there is no fusion.

# %%
import pandas as pd

from oral_lib import storage

recall = {}
if model.spec.alignment:
    about = storage.read_json(run.align(base))
    print(f"{about['pictures']} images, {about['texts']} texts of {about['task']}; "
          f"loss {about['losses'][0]:.2f} to {about['losses'][-1]:.2f} in {about['seconds']:.0f} s")  # fmt: skip
    recall = {"before": about["recall_before"], "after": about["recall_after"]}
pd.DataFrame(recall)

# %% [markdown]
# ## The zoo
# One shared initialisation for both towers and the fusion; the seed sets the order of the data. A
# matching task does not use the fusion, which keeps its initial values: all tasks have one layout.

# %%
run.show_zoo(base)

# %% [markdown]
# ## Images and answers
# Answers of the base model, a trained and a generated adapter to test rows. For matching: which of
# the eight texts is closest to the image. For questions: the answer.

# %%
from oral_lib.report import comparisons
from oral_lib.report.figures import cells, gallery

test = oral_lib.task_rows(spec, run.source).test[:60]
rows = list({row.image: row for row in test}.values())[:8]
trained = next(m.tensors for m in run.members(base) if m.task == task)
[generated] = run.generator().generate(spec.description, base, 1, seed)
adapters = {"base": model.lora_init(), "trained": trained, "generated": generated}
answers, _ = oral_lib.compare(model, spec, rows, adapters)
gallery.example_images(model.display_images(rows), answers)

# %% [markdown]
# ## Every method on the same rows
# *Trained* is the target, *base* is the alignment without LoRA, *router* a stored adapter that a
# classifier of texts picks. For matching, accuracy is recall@1 in both directions.

# %%
metrics, items = run.cell(task, base, seed)
accuracy = metrics[metrics.metric == "accuracy"]
accuracy[["method", "condition", "value", "ci_low", "ci_high", "n_items", "n_samples"]].round(3)

# %%
cells.methods(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## Recall in both directions, or each kind of question

# %%
parts = metrics[~metrics.metric.isin(["accuracy", "auc", "calibrated_accuracy"])]
parts = parts[parts.condition.isin(["none", "matched"])]
parts.pivot_table("value", "method", "metric", sort=False).round(3)

# %% [markdown]
# ## Does the sentence matter?
# The same generator with the task's text, held-out paraphrases, wrong-task prompts, random words
# and an empty prompt. Equal bars would mean that the condition has no effect. Router, retrieval,
# regression and adapter average answer the same texts: the table above has their rows. The
# paraphrases are `development` wordings unless the run was started with `--wordings test`.

# %%
cells.conditions(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## Findings
# *Equal*: the whole interval of the difference lies above -1 point and above -10% of the gain.
# *Below*: the whole interval lies under 0. *Undecided*: all else, which is never counted as reached.

# %%
print(run.findings(items))
