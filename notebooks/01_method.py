# %% [markdown]
# # The method, equation by equation
#
# ORAL turns a LoRA into *tokens* and learns to denoise them under two conditions: the text of the
# task and the base model. This page has each equation, the lines that compute it, and the shapes.
#
# Everything runs on a toy in seconds: the weight change $BA$ of an adapter is a drawing of 24 x 24
# pixels, and a task is a shape. Letters: $b$ adapters, $l$ tokens of $k$ values or $r$ components,
# width $m$, diffusion step $t$.

# %% tags=["parameters"]
recurrence = "mamba2"  # one of mamba2, lstm, transformer, none
condition = "text"  # one of text, none; what the network reads of the task
objective = "x0"  # one of x0, v, eps; what the denoiser predicts
steps = 600  # 1 or more; training steps, 10 to 30 s on two cores
seed = 0  # 0 or more; of initialisation, training and samples

# %%
import torch

from oral_lib import method
from oral_lib.experiments.studies import toy
from oral_lib.report.figures import method as figures
from oral_lib.report.studies import drawings


def shapes(**tensors):
    print(*(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()), sep="   ")


adapters, tasks = toy.zoo(n_seeds=6)
columns = list(toy.SHAPE_TEXTS)
zoo = {f"seed {s}": [toy.weight_change(adapters[6 * i + s]) for i in range(5)] for s in range(2)}
print(len(adapters), "adapters:", *(f"{n} {list(t.shape)}" for n, t in adapters[0].items()))
drawings.drawings_figure(zoo, columns)

# %% [markdown]
# ## 1. Tokens
# $$ K^{i} = \left(w_{ik}, \dots, w_{(i+1)k-1}\right) $$
# Each tensor is flattened and cut into tokens of $k$ values; its last token is padded with zeros.

# %%
config = toy.config(recurrence, condition, objective)
layout = method.Layout.of(toy.initial_adapter(), config.k)
values = method.encode(layout, adapters)
shapes(values=values, mask=layout.mask, positions=layout.positions)
print("token 0:", values[0, 0, :4], "... of layer, index, type", layout.positions[0].tolist())

# %% [markdown]
# ## 2. Normalisation
# $$ K_0 = \frac{V\,(w - w_{\mathrm{init}})}{\sigma\,|V|^2} $$
# The center is the LoRA initialisation that the zoo shares. $\sigma$ and the principal directions
# $V$ are shared by **all tasks**. So all-zero tokens decode to the base model, and no task leaks
# through the statistics.

# %%
center = method.encode(layout, [toy.initial_adapter()])[0]
statistics = config.fit(layout, values, center)
k0 = statistics.normalise(values)
shapes(center=center, sigma=statistics.scale, V=statistics.basis, K_0=k0)
[zeros] = method.decode(layout, statistics.denormalise(0 * k0[:1]))
print(
    "zero tokens are the base model:",
    all(zeros[n].equal(t) for n, t in toy.initial_adapter().items()),
)

# %%
model, data = toy.toy_model(config, n_seeds=6, seed=seed)  # fits the same statistics
kinds = layout.positions[:, 2].tolist()
figures.tokens_figure(
    data.tokens[0], kinds, layout.types, model.bases["toy"].mask, column="component"
)

# %% [markdown]
# ## 3. Condition
# $$ c = \mathrm{fuse}\left(W_{t}\,\mathrm{text} + W_{s}\,\mathrm{structure} +
# W_{f}\,\mathrm{fingerprint}\right) $$
# The text is a sentence embedding. The base model is its structure in words and a random sketch of
# its weights.

# %%
texts = toy.embed(list(toy.NEW_TEXTS.values()))
given = torch.ones(len(texts), dtype=torch.bool)  # False: a learned vector replaces the text
entry = model.bases["toy"]
c = model.conditions("toy", texts, given)
shapes(text=texts, structure=entry.structure, fingerprint=entry.fingerprint, c=c)

# %% [markdown]
# ## 4. Prototypes
# $$ p_j, h_j = f(u_j, h_{j-1}), \qquad u_j = \mathrm{position}_j + \mathrm{type}_j + W c $$
# The recurrent model reads positions and the condition, **never weights**. It runs once per
# condition, not once per diffusion step.

# %%
p = model.prototypes("toy", c)
shapes(c=c, P=p)
print("recurrence:", sum(w.numel() for w in model.recurrence.parameters()), "weights")

# %% [markdown]
# ## 5. Noise
# $$ K_t = \sqrt{\bar\alpha_t}\,K_0 + \sqrt{1-\bar\alpha_t}\,\epsilon $$

# %%
diffusion, draws = model.diffusion, torch.Generator().manual_seed(seed)
clean = data.tokens[::6]  # one adapter of each task
eps = torch.randn(clean.shape, generator=draws)
t = torch.full((len(clean),), 500)
k_t = diffusion.add_noise(clean, eps, t)
shapes(K_0=clean, eps=eps, t=t, K_t=k_t)

# %%
figures.schedule_figure(diffusion.abar)

# %% [markdown]
# ## 6. Denoiser and loss
# $$ L = \left\| \mathrm{mask} \cdot \left(\mathrm{denoise}(K_t, t, P, c) - y\right) \right\|^2,
# \qquad y = K_0,\; \epsilon \;\mathrm{or}\; v = \sqrt{\bar\alpha_t}\,\epsilon -
# \sqrt{1-\bar\alpha_t}\,K_0 $$
# The denoiser processes tokens one by one: they meet only in the recurrent model.

# %%
prediction = model.predict(k_t, t, p, c)
target = diffusion.target(clean, eps, t)
loss = ((prediction - target) * entry.mask).square().mean()
shapes(input=k_t, P=p, prediction=prediction, target=target)
print(f"loss of the untrained network: {loss:.3f}")

# %% [markdown]
# ## Training
# Each step draws tasks, wordings, adapters, noise and $t$, and lowers this loss.

# %%
training = method.TrainingConfig(
    steps=steps, lr=3e-3, warmup=20, text_noise=0.5, text_dropout=0.1, seed=seed
)
model, losses = method.train(model, {"toy": data}, training)
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps")

# %% [markdown]
# ## 7. A sampling step
# $$ K_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat K_0 + \sqrt{1-\bar\alpha_{t'}}\,\hat\epsilon, \qquad
# \hat\epsilon = \frac{K_t - \sqrt{\bar\alpha_t}\,\hat K_0}{\sqrt{1-\bar\alpha_t}} $$
# DDIM without noise: from pure noise to $\bar\alpha = 1$ in 20 steps. All tokens of an adapter start
# from one noise draw.

# %%
sampling = method.SamplingConfig(steps=20, projection="none")
noise = torch.stack([model.noise("toy", sampling, draws) for _ in columns]) * entry.mask
c = model.conditions("toy", texts, given).detach()
p, x, chain = model.prototypes("toy", c).detach(), noise, diffusion.timesteps(20)
for now, later in zip(chain, [*chain[1:], None], strict=True):
    t = torch.full((len(x),), now)
    x_0 = diffusion.to_x0(model.predict(x, t, p, c), x, t).detach() * entry.mask
    a, a_next = diffusion.abar[now], 1.0 if later is None else diffusion.abar[later]
    epsilon = (x - a.sqrt() * x_0) / (1 - a).sqrt()
    x = (a_next**0.5 * x_0 + (1 - a_next) ** 0.5 * epsilon).float()
shapes(noise=noise, P=p, K_0=x)
print("as model.sample:", torch.allclose(x, model.sample("toy", c, noise, sampling), atol=1e-3))

# %% [markdown]
# ## 8. Projection
# $$ K_0 \rightarrow \sum_i w_i\,a_i, \qquad
# w = \arg\min_w \left\|K_0 - \sum_i w_i a_i\right\|, \qquad w_i \ge 0,\; \sum_i w_i = 1 $$
# The optimal denoiser answers with an average of zoo adapters $a_i$. What lies outside of their
# convex hull is an error of the network, so the last estimate is projected on the hull. The default
# also projects each earlier estimate on the span. **After that a sample is 30 convex weights.**

# %%
projection = model.bases["toy"].projection
hull = projection.nearest(x, "hull")
coordinates = x.flatten(1) @ projection.directions.flatten(1).mT
weights = method.projection.convex_weights(projection.coordinates, coordinates)
shapes(K_0=x, directions=projection.directions, weights=weights, projected=hull)
for text, row in zip(toy.NEW_TEXTS.values(), weights.unflatten(1, (5, 6)).sum(2), strict=True):
    print(text.ljust(46), *(f"{task} {w:.2f}" for task, w in zip(columns, row, strict=True)))

# %% [markdown]
# ## 9. Decoding
# $$ w = w_{\mathrm{init}} + \sigma\,V^{T} K_0 $$
# Back to tensors with PEFT's names and shapes.

# %%
[first, *_] = method.decode(layout, data.statistics.denormalise(hull))
print(*(f"{name} {list(tensor.shape)}" for name, tensor in first.items()), sep="\n")

# %% [markdown]
# ## What the toy draws
# The sentences of the columns are held out from training. *Wrong text*: the sentence of the next
# column. Switch `recurrence`, `condition` and `objective` in the second cell and run the page again.


# %%
def draw(texts, projection):
    sampling = method.SamplingConfig(projection=projection)
    c = model.conditions("toy", texts, given)
    k0 = model.sample("toy", c, noise, sampling)
    samples = method.decode(layout, data.statistics.denormalise(k0))
    return [toy.weight_change(adapter) for adapter in samples]


rows = {"trained": zoo["seed 0"]}
rows |= {f"generated,\n{name}": draw(texts, name) for name in ("none", "span", "hull")}
rows["wrong text,\nhull"] = draw(texts.roll(-1, 0), "hull")
drawings.drawings_figure(rows, columns)

# %%
right = [toy.nearest_shape(drawing) for drawing in rows["generated,\nhull"]]
count = sum(task == name for task, name in zip(right, columns, strict=True))
print(f"recurrence {recurrence}, condition {condition}, objective {objective}: "
      f"{count} of 5 held-out sentences give their own shape")  # fmt: skip

# %% [markdown]
# ## Conclusion
# The text selects the shape. Without it (`condition = "none"`) the columns are the same whatever the
# sentence says. `recurrence = "none"` draws the same shapes: its inputs are positions and one global
# condition, so a network per token can compute the same function. Predicting the noise (`eps`) needs
# more steps for the same quality. The projection removes what the denoiser gets wrong, and it limits
# a sample to averages of the zoo. `80_novelty` measures this on real adapters.
