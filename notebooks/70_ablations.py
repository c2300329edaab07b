# %% [markdown]
# # Ablations: which parts of the generator matter?
#
# The claim: every default of the library is the best of its variants, or as good as the best. One
# part is changed at a time, and every variant trains on the same zoo for the same number of steps.
# The defaults of the library are chosen here, so the metrics are of *validation* rows. The test
# rows of the result tables are never used.
#
# | group | what is changed |
# | --- | --- |
# | `token` | values per token, k |
# | `components` | principal components per token, rotated to agree across tokens (and base models) or not, or the k raw values |
# | `recurrence` | Mamba-2, LSTM, Transformer, none |
# | `denoiser` | adaptive norm, or RPG's CNN (also with RPG's objective on raw values) |
# | `width` | channels of the denoiser |
# | `objective` | prediction of the noise, of the clean tokens (also without the scaled input), or of v |
# | `steps`, `temperature` | sampling steps; scale of the initial noise, one draw per adapter or per token |
# | `noise` | one noise draw for all tokens, one per token, one per token with the mean of all tokens as input |
# | `joint` | projection of the denoised tokens on the zoo, all tokens together |
# | `encoder` | the text encoder |
# | `gauge` | $BA = (BR)(R^{-1}A)$: shared initialisation, randomly rotated factors, balanced SVD |
# | `statistics` | shared by all tasks, or per task: a leak, shown on purpose |
#
# At the smoke scale the numbers have no meaning: they show that every variant runs.

# %% tags=["parameters"]
groups = "objective statistics"  # groups of the table above, separated by spaces, or all
bases = "tiny-encoder"  # base models that share one generator, separated by spaces
seed = 0  # 0 or more; of the generator and its samples
rows = 100  # 1 or more; validation rows of a task
samples = 3  # 1 or more; adapters generated for a task
steps = 100  # 0 or more; training steps of a generator, 0: as the scale does
scale = "smoke"  # one of smoke, desk, lab, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib
from oral_lib.report.figures import ablations
from oral_lib.report.studies import ablation_summary

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
# ## Every variant next to the default
# Means over tasks, in percent; the default of a group is starred. *Unseen*: held-out paraphrases.
# *Other*: a wrong-task prompt, which should lose the gain. *Zeros*: decoded all-zero tokens, which
# should be the base model. *Denoising*: squared error of the clean tokens where half the signal is
# left, relative to predicting zeros.

# %%
ablation_summary.ablation_metrics(frame).round(3)

# %%
ablations.ablation_figure(frame)

# %% [markdown]
# ## Two questions of principle
# **Gauge.** A random rotation of each adapter's factors changes no weight, yet the generator has to
# learn factors. The loss with rotated factors is the benefit of a shared initialisation. The
# balanced form shows how much of that benefit is available afterwards.
#
# **Statistics.** With statistics of one task, all-zero tokens decode to the soup of that task, and
# a wrong-task prompt still gives an adapter of the task. Decoding then requires the task to be
# given, so accuracy does not show that the text has an effect.

# %% [markdown]
# ## Findings

# %%
print(*ablation_summary.ablation_findings(frame), sep="\n")
