# %% [markdown]
# # Control: does the sentence steer the generator?
#
# The claim: the text decides which adapter comes out, and a reader can steer it. The doubt: a
# generator that only selects among its tasks does the same. So this page gives sentences of one
# task to the rows of all others, turns the guidance up, mixes two descriptions, describes a wrong
# base model, and takes sentences of your own.
#
# Curves are measured on validation rows with few samples: they show a direction, not a ranking.

# %% tags=["parameters"]
experiment = "language"  # one of language, vision, multimodal
base = ""  # a base model of the experiment: python -m oral_lib bases; empty: its first
between = ""  # two tasks of the base model, separated by a blank; empty: its first two
sentences = [
    "Tell me whether a film critic liked the film.",
    "Is this newspaper headline meant as a joke?",
    "Count the vowels of a word.",
]  # any sentences of your own
guidance = [0.0, 0.5, 1.0, 2.0, 4.0]  # 0 to 4; 1 is the default
weights = [0.0, 0.25, 0.5, 0.75, 1.0]  # 0 to 1; of the second description
rows = 60  # 1 or more; validation rows of a task
samples = 3  # 1 or more; adapters generated for a point
seed = 0  # 0 or more; of the generator and its samples
compute = True  # true or false; false: show what the published results hold, load no model
scale = "smoke"  # one of smoke, desk, lab, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository

# %%
from IPython.display import Markdown, display

import oral_lib
from oral_lib import scales
from oral_lib.evaluation import small_tables
from oral_lib.experiments.studies import control
from oral_lib.report import comparisons
from oral_lib.report.figures import cells, texts
from oral_lib.report.studies import curves

SKIPPED = Markdown("*Not shown: the published results have no such rows; `compute = True` has.*")
run = oral_lib.Run(scale, source, out, experiment)
base = base or run.planned[0].base
if compute:
    run.ready().publish()
    generator = run.generator(scales.generator_of(scale, seed))
    bench = control.Bench(
        run.base(base), generator, run.members(base), run.source, rows, samples, seed
    )
    references = control.references(bench)
print(f"{base}, scale {scale}, source {run.source}")

# %% [markdown]
# ## Whose sentence, whose rows
# Each row of the figure is a text, each column the test rows of a task. On the diagonal the text
# describes the task. Equal columns would mean that the text has no effect.

# %%
origin = run.source.partition(":")[0]
metrics, items, given = (
    frame[(frame.source == origin) & (frame.base == base) & (frame.experiment == experiment)]
    for frame in (*run.published(), small_tables.TEXTS.read(run.results))
)
display(texts.text_by_task(items, given) or SKIPPED)

# %% [markdown]
# The same by kind of text: the task's own, held-out paraphrases, descriptions of other tasks, random
# words, and no text. The paraphrases are `development` wordings, unless the run was started with
# `--wordings test`.

# %%
pooled = comparisons.pooled(metrics[metrics.metric == "accuracy"])
display(cells.conditions(pooled, comparisons.per_sample(items)) if len(pooled) else SKIPPED)

# %% [markdown]
# ## Guidance
# $$ \hat K_0 = \hat K_0^{\mathrm{free}} + g\,(\hat K_0^{\mathrm{text}} - \hat K_0^{\mathrm{free}}) $$
# At $g = 0$ the text is ignored, at 1 the network answers as trained, above 1 it exaggerates what
# the text changes. The projection on the zoo's hull bounds the exaggeration.

# %%
if compute:
    guided = control.guidance(bench, guidance)
    display(curves.guidance_figure(guided, references))
else:
    display(SKIPPED)

# %% [markdown]
# ## Between two descriptions
# The embeddings of two descriptions are mixed (solid), or the conditions that the network computes
# from them (dashed). A generator that selects jumps from one task to the other; one that composes
# has a range in which both tasks work.

# %%
if compute:
    first, second = between.split() or bench.tasks[:2]
    mixed = control.interpolation(bench, first, second, weights)
    display(curves.interpolation_figure(mixed, references))
else:
    display(SKIPPED)

# %% [markdown]
# ## A wrong base model
# The network reads the structure of another base model, or the fingerprint of its weights, or both.
# The decoded adapter still has the layout of its own base model. If the accuracy stays, the
# description is not used.

# %%
if compute:
    wrong = control.wrong_base(bench)
    display(curves.wrong_base_figure(wrong, references) if len(wrong) else "One base model only.")
else:
    display(SKIPPED)

# %% [markdown]
# ## Sentences of your own
# For each sentence: the tasks that a router and retrieval pick, the task of the nearest adapter in
# the zoo, the distance to it (1: as far as two seeds of a task), and the accuracy on each task.

# %%
if compute:
    asked = control.sentences(bench, sentences)
    display(asked.set_index("sentence").style.format(precision=2))
else:
    display(SKIPPED)

# %% [markdown]
# ## What to conclude
# - A sentence that means none of the tasks still gives an adapter: the one of some task, or a mix.
#   The generator never declines.
# - *Nearest* and *router* agree where the generator does what a classifier of texts does.
# - A wide range in the second figure, in which both tasks keep their gain, would be composition. A
#   step is selection.
# - Where a wrong fingerprint costs accuracy, the network uses it to tell base models apart. That
#   does not show that it carries over to base models that it has not seen.
