# %% [markdown]
# # Language: one task on one base model
#
# The claim: an adapter generated from a sentence performs like a trained one. The doubt: a router
# that only picks a stored adapter, the adapter average (soup), retrieval or plain regression may
# perform as well, and the sentence may not matter. So all baselines and controls are measured on
# the same test rows.

# %% tags=["parameters"]
task = "movie"  # a task of the base model: python -m oral_lib tasks
base = "tiny-encoder"  # a base model of the experiment: python -m oral_lib bases
seed = 0  # 0 or more; of the generator and its samples
scale = "smoke"  # one of smoke, desk, lab, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib

run = oral_lib.Run(scale, source, out)
run.check(task, base)
run.ready()
spec = oral_lib.load_task(task)
answers = ", ".join(spec.labels) or "written"
print(f"{spec.description}\nanswers: {answers}\nbase model: {base}, source {run.source}")
print(f"held-out paraphrases: {run.measured_wordings}")

# %% [markdown]
# ## The zoo
# All adapters start from one shared initialisation; the seed sets the order of the data. The `lab`
# scale selects learning rate and steps per task on validation rows, which are cut from the training
# rows. The other scales have fixed values. All later figures are of test rows.

# %%
run.show_zoo(base)

# %% [markdown]
# One row per task. Written answers have no validation accuracy. Further seeds are held out: no
# generator, soup or retrieval uses them. They count as *trained* below, and they are the reference
# for how new generated adapters are.

# %% [markdown]
# ## Every method on the same rows
# *Trained* is the target; *base* and *majority* are the baselines. *Router* is a linear classifier
# of the task on embeddings of the training wordings; it returns a stored adapter. *Generated* is
# projected on the convex hull of the zoo, *generated_span* on its span, *generated_free* not at
# all. *Gaussian* draws each weight independently, *noise* perturbs trained adapters: both show what
# a cloud around the zoo achieves. Methods that do not depend on the generator are measured with
# seed 0 only.

# %%
metrics, items = run.cell(task, base, seed)
accuracy = metrics[metrics.metric == "accuracy"]
accuracy[["method", "condition", "value", "ci_low", "ci_high", "n_items", "n_samples"]].round(3)

# %%
from oral_lib.report import comparisons
from oral_lib.report.figures import cells

cells.methods(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## Does the sentence matter?
# The same generator with the task's text, held-out paraphrases, wrong-task prompts, random words
# and an empty prompt. Some scales use fewer rows for the last three. Equal bars would mean that the
# condition has no effect. Router, retrieval, regression and adapter average answer the same texts:
# the table above has their rows. The paraphrases are `development` wordings, which were looked at
# while the method was chosen, unless the run was started with `--wordings test`.

# %%
cells.conditions(comparisons.pooled(accuracy), comparisons.per_sample(items))

# %% [markdown]
# ## Findings
# *Equal*: the whole interval of the difference lies above -1 point and above -10% of the gain.
# *Below*: the whole interval lies under 0. *Undecided*: all else, which is never counted as reached.

# %%
print(run.findings(items))
