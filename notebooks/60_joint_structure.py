# %% [markdown]
# # Joint structure: where are diffusion and recurrence needed?
#
# The claim: a generator that samples, and whose recurrent model lets tokens see each other, can do
# what an average, plain regression and tokens drawn apart cannot. The setting is a zoo whose
# adapters start from LoRA draws of their own. The B that training writes fits the random A of its
# own start, so the same task has as many factors as it has starts, and the mean of these factors fits none of them.
#
# What counts as success was written down before the study ran: the limits in the last table. All
# rows are validation rows. At the smoke scale the numbers have no meaning: they show that every
# part runs.

# %% tags=["parameters"]
size = "smoke"  # one of smoke, lab
source = "packages"  # packages, hub or local:DIR; has no effect with size smoke
out = ""  # the folder of runs/ and results/; empty: the repository

# %%
from oral_lib import paths
from oral_lib.experiments.studies import joint_structure

frame = joint_structure.run(size, source, out or paths.ROOT)

# %% [markdown]
# ## Every method
# Accuracy in percent; *gap*: points above *trained*, with its paired interval over rows and
# adapters; *ratio*: the distance to the nearest adapter of the zoo over that of a held-out one.

# %%
frame.drop(columns=["source", "base", "seed", "commit"]).round(2)

# %% [markdown]
# ## The limits

# %%
joint_structure.decided(frame)
