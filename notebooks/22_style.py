# %% [markdown]
# # Styles: one style of pictures on one latent diffusion model
#
# The claim: an adapter made from a sentence paints like one that was trained on pictures. LoRA sits
# on the attention of the UNet. One fixed prompt serves all styles, so what tells them apart is in
# the adapter. The doubt: a distance between few pictures is coarse, and a mean of the style's
# adapters may paint as well. So all methods paint from the same noises, and beside the distance
# stands the error of denoising held-out pictures, which needs no painting. The model of the smoke
# scale paints blots: it shows that every part runs, and its numbers mean nothing.

# %% tags=["parameters"]
task = "pokemon"
base = "tiny-diffusion"
seed = 0
scale = "smoke"
source = "packages"
out = ""

# %%
import oral_lib
from oral_lib import scales
from oral_lib.experiments import styles
from oral_lib.models import latent_diffusion
from oral_lib.report import method_figures, tables
from oral_lib.tasks import images

latent_diffusion.need_diffusers()
run = oral_lib.Run(scale, source, out, "style")
run.check(task, base)
run.ready()
spec = oral_lib.load_task(task)
model = run.base(base)
print(
    f"{spec.description}\nprompt: {latent_diffusion.PROMPT}, source {run.source}\n{model.describe()}"
)

# %% [markdown]
# ## The zoo
# One shared start; the seed decides the order of the pictures and the noise that is put on them.
# The loss is the squared error of denoising. *Validation error* is that of pictures which no adapter
# was trained on, with the same noise for all.

# %%
import pandas as pd

members = run.members(base)
held = pd.DataFrame(
    {"task": m.task, "lr": m.info["recipe"]["lr"], "steps": m.info["recipe"]["steps"],
     "adapters": 1, "validation error": -m.info["validation_likelihood"],
     "last loss": m.info["losses"][-1]}
    for m in members
)  # fmt: skip
held.groupby(["task", "lr", "steps"]).agg(
    {"adapters": "sum"} | dict.fromkeys(held.columns[4:], "mean")
)

# %% [markdown]
# ## Pictures
# Held-out pictures of the style, and what the untouched base model, a trained and a generated
# adapter paint. Pictures of one column start from one noise: what differs there is the adapter's
# doing. The real ones have nothing to do with the noise below them.

# %%


canvas, generator = styles.STYLE_SETTINGS[scale], scales.generator_of(scale, seed)
rows = oral_lib.task_rows(spec, run.source).test[:8]
trained = next(m.tensors for m in members if m.task == task)
[made] = run.generator(generator).generate(spec.description, base, 1, seed)
adapters = {"base": model.lora_init(), "trained": trained, "generated": made}
shown = styles.generate_images(model, list(adapters.values()), len(rows), canvas, "paint")
real = images.decode([row.image for row in rows], model.pixels, "bicubic")
method_figures.style_figure({"real": real} | dict(zip(adapters, shown, strict=True)))

# %% [markdown]
# ## Every method from the same noises
# The Fréchet distance of what is painted from as many held-out pictures, over the features of the
# network that its column names (`fid`: Inception's), and the error of denoising held-out pictures:
# less is better of both. *Training pictures* is the floor, the distance that real pictures have.
# *Trained* is the mark to reach. *Unseen wording*, *other text*, *random words* and *no text* are
# what the generator was told in place of the style's sentence; were they level with *generated*, the
# sentence would do nothing. What does not depend on the generator is measured with seed 0 alone.

# %%


metrics, _ = run.cell(task, base, seed)
print(
    f"{metrics.n_items.max()} pictures an adapter, {canvas.steps} steps of DDIM, guidance "
    f"{canvas.guidance:g}; ± the standard error over new pictures"
)
tables.style_table(metrics)

# %% [markdown]
# No verdict in words here: the paired comparisons of the other notebooks need items that are right
# or wrong, and pictures are neither. Distances of different numbers of pictures, or over different
# features, must not be compared.
