# %% [markdown]
# # Styles: one style of images on one latent diffusion model
#
# The claim: an adapter generated from a sentence renders a style like one trained on images. LoRA
# is applied to the attention of the UNet. All styles share one fixed prompt, so the style must be
# in the adapter. The doubt: a distance between few images is coarse, and the style's adapter
# average may do as well. So all methods start from the same noises. A second metric, the denoising
# error of held-out images, requires no sampling. The model of the smoke scale renders blots: it
# shows that every part runs, and its numbers have no meaning.

# %% tags=["parameters"]
task = "pokemon"  # a task of the base model: python -m oral_lib tasks
base = "tiny-diffusion"  # a base model of the experiment: python -m oral_lib bases
seed = 0  # 0 or more; of the generator and its samples
scale = "smoke"  # one of smoke, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import oral_lib
from oral_lib import scales
from oral_lib.experiments import styles
from oral_lib.models import latent_diffusion
from oral_lib.report.figures import method
from oral_lib.report.tables import methods
from oral_lib.tasks import images

latent_diffusion.need_diffusers()
run = oral_lib.Run(scale, source, out, "style")
run.check(task, base)
run.ready()
spec = oral_lib.load_task(task)
model = run.base(base)
print(f"{spec.description}\nprompt: {latent_diffusion.PROMPT}, source {run.source}")
print(model.describe())

# %% [markdown]
# ## The zoo
# One shared initialisation; the seed sets the order of the images and their noise. The loss is the
# squared error of denoising. *Validation log-likelihood* is minus that error on images that no
# adapter was trained on, with the same noise for all.

# %%
run.show_zoo(base)

# %% [markdown]
# ## Images
# Held-out images of the style, and images rendered by the base model, a trained and a generated
# adapter. Images of one column start from one noise, so their differences come from the adapters.
# The real images have no relation to the noise of their column.

# %%
settings = styles.STYLE_SETTINGS[scale]
rows = oral_lib.task_rows(spec, run.source).test[:8]
trained = next(m.tensors for m in run.members(base) if m.task == task)
generator = run.generator(scales.generator_of(scale, seed))
[generated] = generator.generate(spec.description, base, 1, seed)
adapters = {"base": model.lora_init(), "trained": trained, "generated": generated}
rendered = styles.generate_images(model, [*adapters.values()], len(rows), settings, "paint")
real = images.decode_images([row.image for row in rows], model.pixels, "bicubic")
method.style_figure({"real": real} | dict(zip(adapters, rendered, strict=True)))

# %% [markdown]
# ## Every method from the same noises
# Two metrics, both lower is better: the denoising error of held-out images, and the Fréchet
# distance between rendered and as many held-out images. Its column names the network of the
# features (`fid`: Inception). *Training images* is the lower bound, the distance between real
# images. *Trained* is the target. The prompts of the controls replace the sentence of the style.
# If they were level with *generated*, the sentence would have no effect. Methods that do not
# depend on the generator are measured with seed 0 only.

# %%
metrics, _ = run.cell(task, base, seed)
print(f"{metrics.n_items.max()} images per adapter, {settings.steps} DDIM steps, guidance "
      f"{settings.guidance:g}; ± standard error over new images")  # fmt: skip
methods.style_table(metrics)

# %% [markdown]
# There are no findings in words here: the paired comparisons of the other notebooks require items
# that are right or wrong. Distances of different numbers of images, or over different features, are
# not comparable.
