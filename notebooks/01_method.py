# %% [markdown]
# # The method in pictures
#
# ORAL turns a LoRA into *tokens*, and learns to denoise such tokens under two conditions: the text
# of the task and the base model.
#
# $$ K_t = \sqrt{\bar\alpha_t}\,K_0 + \sqrt{1-\bar\alpha_t}\,\epsilon,\qquad
# P = \mathrm{recurrence}(\mathrm{positions}, c),\qquad
# \hat K_0 = \mathrm{denoise}(K_t, t, P, c) $$
#
# Letters: $l$ tokens of $k$ values, width $m$, diffusion step $t$.

# %% tags=["parameters"]
scale = "smoke"
source = "packages"
out = ""

# %%
import oral_lib

run = oral_lib.Run(scale, source, out).ready()
generator = run.generator()
planned = [cells.base for cells in run.planned]
name = next((n for n in ("tiny-encoder", "minilm-l6") if n in planned), planned[0])
member = run.members(name)[0]
print(f"adapter of task {member.task!r} on {name}: {len(member.tensors)} tensors,",
      f"{sum(t.numel() for t in member.tensors.values()):,} values")  # fmt: skip

# %% [markdown]
# ## 1. An adapter as tokens
# Each tensor is cut into tokens of $k$ values; the last token of a tensor is padded (grey). Values
# are taken relative to the LoRA start that the whole zoo shares and scaled by one number a tensor,
# the same for all tasks. So **all-zero tokens are the base model**: no task leaks through the
# statistics.

# %%
from oral_lib.method import normalization, tokenization
from oral_lib.report import method_figures

known = generator.bases[name]
values = tokenization.encode(known.layout, [member.tensors])
plain = normalization.TokenStatistics(known.center, known.scale).normalise(values)[0]
kinds = [known.layout.types.index(known.layout.types[i]) for i in known.layout.positions[:, 2]]
method_figures.tokens_figure(plain, kinds, known.layout.types, known.layout.mask)

# %% [markdown]
# What is generated is not these values but, for every token, its place among the adapters of the
# zoo: the first principal components of that token over all tasks, the strongest first (grey where
# there are no more of them). They are the directions that training moved the token in, turned so
# that an adapter has nearly the same components in all of its tokens, the stripes below, and a task
# nearly the same in all base models.

# %%
k0, real = known.statistics.normalise(values)[0], known.statistics.mask(known.layout)
some = real.any(0)  # components that the zoo has
method_figures.tokens_figure(
    k0[:, some], kinds, known.layout.types, real[:, some], column="component"
)

# %%
again = known.statistics.denormalise(k0[None])
moved, lost = (values - known.center).norm(), (values - again).norm()
print(f"the components keep {1 - (lost / moved) ** 2:.2%} of what training moved")
[restored] = tokenization.decode(known.layout, values)
print("exact round trip:", all(restored[n].equal(t) for n, t in member.tensors.items()))
[zeros] = tokenization.decode(known.layout, known.statistics.denormalise(0 * k0[None]))
start = run.base(name).lora_init()
print("zero tokens are the base model:", all(zeros[n].equal(t) for n, t in start.items()))

# %% [markdown]
# ## 2. The noise schedule
# Training mixes a token with noise; at the last step next to nothing of it is left.

# %%
method_figures.schedule_figure(generator.network.diffusion.abar)

# %% [markdown]
# ## 3. Prototypes
# The recurrent model never sees weights. It reads where a token sits (layer, place, kind of tensor)
# and the condition, and answers with one prototype a token. Change the text and every prototype
# moves.

# %%
task = oral_lib.load_task(member.task)
p, states, steps = generator.trace(task.description, name)
method_figures.prototypes_figure(p, kinds, known.layout.types)

# %%
other = next(t for t in oral_lib.task_names() if t != member.task)
q, _, _ = generator.trace(oral_lib.load_task(other).description, name)
moved = (p - q).norm(dim=-1) / p.norm(dim=-1)
print(f"relative move of the prototypes: least {moved.min():.3f}, most {moved.max():.3f}")

# %% [markdown]
# ## 4. One token being denoised
# From noise (left) to the token (right), over that of a trained adapter of the same task in grey. Generated and trained need not agree value by value: two training seeds do not either.

# %%
longest = int(known.layout.mask.sum(-1).argmax())
own = real[longest]
method_figures.denoising_figure(states[:, longest, own], k0[longest, own], steps)

# %% [markdown]
# ## What to take away
# The condition reaches every token through its prototype, the denoiser treats tokens one by one,
# and the recurrent pass is paid once a condition, not once a diffusion step. So that the tokens of a
# sample fit together, all start from one draw of noise, and after each step what is taken for the
# clean tokens is replaced by the nearest mixture of zoo adapters, the same for all tokens.
