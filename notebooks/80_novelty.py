# %% [markdown]
# # Novelty: what is a sample?
#
# The claim that this page examines: a generator makes *new* adapters. Each estimate is projected on
# the zoo's span and the last one on its convex hull. So a sample of the default projection is a
# weighted average of zoo adapters. How many adapters take part, how far is a sample from the
# nearest one, how much do samples differ, do they err on the same rows, and does the generator need
# less space than what it replaces?

# %% tags=["parameters"]
experiment = "language"  # one of language, vision, multimodal
base = ""  # a base model of the experiment: python -m oral_lib bases; empty: its first
samples = 5  # 1 or more; adapters generated for a text
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
from oral_lib.experiments.studies import samples as study
from oral_lib.report.figures import maps
from oral_lib.report.studies import composition
from oral_lib.report.tables import studies as tables

SKIPPED = Markdown("*Not shown: the published results have no such rows; `compute = True` has.*")
run = oral_lib.Run(scale, source, out, experiment)
base = base or run.planned[0].base
if compute:
    run.ready().publish()
    generator = run.generator(scales.generator_of(scale, seed))
    zoo = run.members(base)
    bench = control.Bench(run.base(base), generator, zoo, run.source, n_samples=samples, seed=seed)


origin = run.source.partition(":")[0]


def published(table):
    rows = table.read(run.results)
    return rows[(rows.experiment == experiment) & (rows.source == origin)]


print(f"{base}, scale {scale}, source {run.source}")

# %% [markdown]
# ## Weights over the zoo
# One line a sample, one column an adapter of the zoo. A copy has one bright cell, the adapter
# average equal cells in the columns of its task.

# %%
if compute:
    shares = study.weights(bench)
    display(composition.weights_figure(shares))
else:
    display(SKIPPED)

# %%
if compute:
    display(composition.weights_table(shares).style.format(precision=2))

# %% [markdown]
# Without the projection a sample need not lie in the hull. The last column says how far outside it
# is, as a share of its distance from the initialisation: the part that the zoo does not explain.

# %%
if compute:
    free = study.weights(bench, projection="none")
    display(composition.weights_table(free).style.format(precision=2))
else:
    display(SKIPPED)

# %% [markdown]
# ## Distance, spread and free numbers
# *Distance*: from a sample to the nearest zoo adapter of its task, relative to an adapter of a
# held-out seed. 0 is a copy, 1 as far as another training run. *Spread*: between two samples,
# relative to two adapters of the zoo. *Free numbers*: along how many directions samples differ, and
# the most that the projection allows. `generated_span` and `generated_free` are the projection on
# the span, and none.

# %%
novelty = published(small_tables.NOVELTY)
novelty = novelty[novelty.base == base]
tables.novelty_table(novelty, origin)

# %%
points = published(small_tables.MAPS)
points = points[points.base == base]
display(maps.zoo_map(points) if len(points) else SKIPPED)

# %% [markdown]
# ## Errors
# Two adapters trained with different seeds err on partly different rows. If a sample errs on the
# same rows as one adapter of the zoo, it is functionally that adapter. For each sample: the largest
# overlap with any adapter of the zoo. Next to it the same of a held-out trained adapter.

# %%
_, items = run.published()
items = items[(items.source == origin) & (items.base == base)]
held_out = int(novelty.n_held_out.max()) if len(novelty) else 0
overlap = composition.error_overlap(items, held_out)
display(composition.overlap_figure(overlap) if len(overlap) else SKIPPED)

# %% [markdown]
# ## Bytes

# %%
sizes = published(small_tables.BYTES)
display(tables.bytes_table(sizes) if len(sizes) else SKIPPED)

# %% [markdown]
# ## What to conclude
# A sample of the default projection has at most as many free numbers as the zoo has adapters, less
# one. It is new as an average of adapters is new. An overlap of errors above the one of held-out
# seeds says that samples are closer to the zoo than a further training run is. A router returns one
# of the stored adapters, and it needs the float16 zoo and a small classifier. The generator is
# smaller than that only where its line in the last table says so.
