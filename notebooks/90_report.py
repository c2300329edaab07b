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
#
# Trained against generated; the base model in brackets.

# %%
from oral_lib.report import comparisons, overview_figures, tables
from oral_lib.report.comparisons import contrasts, without_signal
from oral_lib.report.findings import verdict
from oral_lib.report.tables import grid_legend, grid_table

known = run.source.partition(":")[0]
metrics, items = (frame[frame.source == known] for frame in run.published())
compared = contrasts(items)
no_signal = without_signal(compared)
grid = grid_table(metrics, known, items, no_signal=no_signal)
print(grid_legend(grid))
grid

# %%
overview_figures.parity(comparisons.pooled(metrics[metrics.metric == "accuracy"]), no_signal)

# %% [markdown]
# ## Does the text matter?

# %%
overview_figures.controls(compared)

# %% [markdown]
# ## Every method

# %%
tables.main_table(metrics, known, items, no_signal=no_signal)

# %% [markdown]
# ## In words

# %%


summary, cells = verdict(compared)
print(*summary, *cells, sep="\n\n")
