# %% [markdown]
# # The report
#
# Collects all cells of a scale into `results/<scale>/` and writes tables, figures and findings from
# these files only. Missing cells are measured first.

# %% tags=["parameters"]
scale = "smoke"  # one of smoke, desk, lab, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib

run = oral_lib.Run(scale, source, out).ready()
readme = run.publish()
print(readme)

# %% [markdown]
# ## The table
#
# Trained against generated; the base model in brackets.

# %%
from oral_lib.report import comparisons
from oral_lib.report.figures import overview
from oral_lib.report.tables import grid, methods

origin = run.source.partition(":")[0]
metrics, items = (frame[frame.source == origin] for frame in run.published())
held_out = max(plan.held_out for plan in run.planned)
judged = comparisons.judged(items, held_out)
no_signal = comparisons.without_signal(judged)
table = grid.grid_table(metrics, origin, items, no_signal=no_signal)
print(grid.grid_legend(table))
table

# %%
overview.gaps(judged)

# %% [markdown]
# ## Does the text matter?

# %%
overview.controls(judged)

# %% [markdown]
# ## Every method

# %%
methods.main_table(metrics, origin, items, held_out=held_out, no_signal=no_signal)

# %% [markdown]
# ## Findings

# %%
print(run.findings(items))
