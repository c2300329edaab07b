# %% [markdown]
# # Ablations: which parts of the generator matter?
#
# The claim: every default of the library is the best of what was tried, or as good as the best. One
# part is changed at a time, all else stays, every variant learns from the same zoo for as many
# steps. The library's defaults are chosen here, so the judges are *validation* rows; the test rows
# of the result tables are never read.
#
# | group | what is changed |
# | --- | --- |
# | `token` | values a token, k |
# | `components` | principal components that tell a token, turned alike in all tokens (and base models) or not, or its k values |
# | `recurrence` | Mamba-2, LSTM, Transformer, none |
# | `denoiser` | adaptive norm, or RPG's CNN (alone, and with RPG's objective on values) |
# | `width` | channels of the denoiser |
# | `objective` | predict the noise, the clean tokens (also without the scaled entry), or v |
# | `steps`, `temperature` | sampling steps; scale of the noise that sampling starts from, one draw an adapter or one a token |
# | `noise` | one draw of noise for all tokens, one a token, one a token where each is told of the whole |
# | `joint` | among which mixtures of zoo adapters what is denoised is put back, all tokens together |
# | `encoder` | who reads the text |
# | `gauge` | $BA = (BR)(R^{-1}A)$: shared start, factors turned at random, balanced SVD |
# | `statistics` | shared by all tasks, or of each task: a leak, shown on purpose |
#
# At the smoke scale the numbers mean nothing: they prove that every variant runs.

# %% tags=["parameters"]
groups = "objective statistics"
bases = "tiny-encoder"
seed = 0
rows = 100
samples = 3
steps = 100
scale = "smoke"
source = "packages"
out = ""

# %% [markdown]
# `groups` and `bases` may name several, with spaces between (`groups = "all"`: every one); several
# bases share one generator.
# `steps = 0` trains each generator for as long as the scale does.

# %%
import oral_lib
from oral_lib.report import ablation_summary

run = oral_lib.Run(scale, source, out)
frame = run.ablate(
    groups.split(),
    bases=bases.split(),
    rows=rows,
    samples=samples,
    steps=steps or None,
    seed=seed,
)
print(f"{len(frame)} rows in {run.results / 'ablations.csv'}")

# %% [markdown]
# ## Every variant beside the default
# Means over tasks, shares in percent; the default of a group is starred. *Unseen*: wordings that no
# generator has read. *Other*: told of another task, which should cost the gain. *Zeros*: all-zero
# tokens decoded, which should be the base model. *Denoising*: squared error of the clean tokens
# where half the signal is left, relative to answering zeros.

# %%
ablation_summary.ablation_metrics(frame).round(3)

# %%


ablation_summary.ablation_figure(ablation_summary.ablation_means(frame))

# %% [markdown]
# ## Two questions of principle
# **Gauge.** A random rotation of each adapter's factors leaves every weight as it was, and yet a
# generator has to learn factors. What it loses there is what a shared start buys; the balanced form
# shows how much of it can be had after the fact.
#
# **Statistics.** Normalised by the statistics of its own task, a generator that answers *zeros*
# returns the soup of that task, and told of *another* task it still does the old one. Whoever
# decodes must already know the task: it proves nothing of the text.

# %% [markdown]
# ## In words

# %%
print(*ablation_summary.ablation_findings(frame), sep="\n")
