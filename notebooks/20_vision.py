# %% [markdown]
# # Vision: one task on one image backbone
#
# The claim: the method does not depend on what the adapter adapts. The same zoo, tokens, generator
# and evaluation work for a convolutional network. LoRA is applied to its convolutions, and the
# classification head is generated together with it. The doubt: a linear probe on the frozen
# features may be sufficient. So it is among the baselines.

# %% tags=["parameters"]
task = "easy_vqa_shape"  # a task of the base model: python -m oral_lib tasks
base = "tiny-convnet"  # a base model of the experiment: python -m oral_lib bases
seed = 0  # 0 or more; of the generator and its samples
scale = "smoke"  # one of smoke, lab
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib

run = oral_lib.Run(scale, source, out, "vision")
run.check(task, base)
run.ready()
spec = oral_lib.load_task(task)
model = run.base(base)
print(f"{spec.description}\nanswers: {', '.join(spec.labels)}\nsource {run.source}")
print(f"{model.describe()}\nheld-out paraphrases: {run.measured_wordings}")

# %% [markdown]
# ## The zoo
# As for language: one shared initialisation, and the seed sets the order of the data. Depthwise
# convolutions have no LoRA, and BatchNorm keeps its statistics. A task trains the rows of the head
# for its classes. The other rows keep their initial values, so that all tasks of a backbone have
# one layout.

# %%
run.show_zoo(base)

# %% [markdown]
# ## Images and answers
# Test images as the backbone receives them, with the true answer and the answers of the base model
# (its head is untrained), a trained and a generated adapter.

# %%
from oral_lib.report import comparisons
from oral_lib.report.figures import cells, gallery

rows = oral_lib.task_rows(spec, run.source).test[:8]
trained = next(m.tensors for m in run.members(base) if m.task == task)
[generated] = run.generator().generate(spec.description, base, 1, seed)
adapters = {"base": model.lora_init(), "trained": trained, "generated": generated}
answers, _ = oral_lib.compare(model, spec, rows, adapters)
gallery.example_images(model.display_images(rows), answers.drop(columns="text"))

# %% [markdown]
# ## Every method on the same images
# *Trained* is the target, *router* a stored adapter that a classifier of texts picks. *Linear probe*
# is a head fitted to the frozen features; its regularisation is selected on validation rows. What
# lies above it is the gain of LoRA.

# %%
metrics, items = run.cell(task, base, seed)
accuracy = metrics[metrics.metric == "accuracy"]
accuracy[["method", "condition", "value", "ci_low", "ci_high", "n_items", "n_samples"]].round(3)

# %%
cells.methods(comparisons.pooled(accuracy), comparisons.per_sample(items))

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
