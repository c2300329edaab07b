# %% [markdown]
# # The method in figures
#
# ORAL turns a LoRA into *tokens* and learns to denoise them under two conditions: the text of the
# task and the base model.
#
# $$ K_t = \sqrt{\bar\alpha_t}\,K_0 + \sqrt{1-\bar\alpha_t}\,\epsilon,\qquad
# P = \mathrm{recurrence}(\mathrm{positions}, c),\qquad
# \hat K_0 = \mathrm{denoise}(K_t, t, P, c) $$
#
# Letters: $l$ tokens of $k$ values, width $m$, diffusion step $t$.

# %% tags=["parameters"]
scale = "smoke"  # one of smoke, desk, lab, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib

run = oral_lib.Run(scale, source, out).ready()
generator = run.generator()
planned = [plan.base for plan in run.planned]
name = next((n for n in ("tiny-encoder", "minilm-l6") if n in planned), planned[0])
member = run.members(name)[0]
print(f"adapter of task {member.task!r} on {name}: {len(member.tensors)} tensors,",
      f"{sum(t.numel() for t in member.tensors.values()):,} values")  # fmt: skip

# %% [markdown]
# ## 1. An adapter as tokens
# Each tensor is cut into tokens of $k$ values; the last token of a tensor is padded (grey). Values
# are relative to the LoRA initialisation that the zoo shares. One scale per tensor, the same for
# all tasks, normalises them. So **all-zero tokens are the base model**, and no task leaks through
# the statistics.

# %%
from oral_lib.method import normalization, tokenization
from oral_lib.report.figures import method

entry = generator.bases[name]
layout, statistics = entry.layout, entry.statistics
values = tokenization.encode(layout, [member.tensors])
raw = normalization.TokenStatistics(entry.center, entry.scale).normalise(values)[0]
kinds = [layout.types.index(layout.types[i]) for i in layout.positions[:, 2]]
method.tokens_figure(raw, kinds, layout.types, layout.mask)

# %% [markdown]
# The generator does not produce these values. It produces, for each token, its first principal
# components over the adapters of all tasks, strongest first (grey: the zoo has no more of them).
# The components are the directions in which training moved the token. They are rotated to agree
# across the tokens of an adapter, which shows as stripes, and across base models.

# %%
k0, active = statistics.normalise(values)[0], statistics.mask(layout)
columns = active.any(0)  # components that the zoo has
method.tokens_figure(k0[:, columns], kinds, layout.types, active[:, columns], column="component")

# %%
projected = statistics.denormalise(k0[None])
change, error = (values - entry.center).norm(), (values - projected).norm()
print(f"the components keep {1 - (error / change) ** 2:.2%} of what training moved")
[restored] = tokenization.decode(layout, values)
print("exact round trip:", all(restored[n].equal(t) for n, t in member.tensors.items()))
[zeros] = tokenization.decode(layout, statistics.denormalise(0 * k0[None]))
initial = run.base(name).lora_init()
print("zero tokens are the base model:", all(zeros[n].equal(t) for n, t in initial.items()))

# %% [markdown]
# ## 2. The noise schedule
# Training mixes a token with noise. At the last step almost no signal is left.

# %%
method.schedule_figure(generator.network.diffusion.abar)

# %% [markdown]
# ## 3. Prototypes
# The recurrent model never reads weights. Its inputs are the position of each token (layer, index,
# kind of tensor) and the condition; its output is one prototype per token. Another text moves
# every prototype.

# %%
task = oral_lib.load_task(member.task)
prototypes, states, steps = generator.trace(task.description, name)
method.prototypes_figure(prototypes, kinds, layout.types)

# %%
other_task = oral_lib.load_task(next(t for t in oral_lib.task_names() if t != member.task))
others, _, _ = generator.trace(other_task.description, name)
moved = (prototypes - others).norm(dim=-1) / prototypes.norm(dim=-1)
print(f"relative move of the prototypes: least {moved.min():.3f}, most {moved.max():.3f}")

# %% [markdown]
# ## 4. One token, denoised step by step
# From noise (left) to the token (right); in grey the token of a trained adapter of the same task.
# Generated and trained values need not agree; neither do the values of two training seeds.

# %%
longest = int(layout.mask.sum(-1).argmax())
components = active[longest]
method.denoising_figure(states[:, longest, components], k0[longest, components], steps)

# %% [markdown]
# ## Conclusion
# The condition reaches every token through its prototype, and the denoiser processes tokens one by
# one. The recurrent model runs once per condition, not once per diffusion step. Two measures make
# the tokens of a sample fit together: they share one noise draw, and each estimate of the clean
# tokens is projected on the zoo, with the same weights in all tokens.
