# %% [markdown]
# # The report
#
# Collects every cell of a scale into `results/<scale>/`, and writes tables, figures and a verdict in
# words from those files alone. Cells that are missing are measured first.

# %% tags=["parameters"]
scale = "smoke"
source = "packages"
out = ""

# %%
import oral_lib

run = oral_lib.Run(scale, source, out).ready()
readme = run.publish()
print(readme)

# %% [markdown]
# ## The table

# %%
from oral_lib import figures, results, tables

metrics, items = results.read(run.results)
tables.main_table(metrics, run.source.partition(":")[0], items)

# %%
accuracy = metrics[metrics.metric == "accuracy"]
figures.methods(tables.pooled(accuracy), tables.per_sample(items))

# %%
figures.conditions(tables.pooled(accuracy), tables.per_sample(items))

# %% [markdown]
# ## In words

# %%
from oral_lib.verdict import verdict

summary, cells = verdict(tables.contrasts(items))
print(*summary, *cells, sep="\n\n")
