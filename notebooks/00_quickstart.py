# %% [markdown]
# # Quickstart: one sentence in, a working LoRA out
#
# A LoRA is usually trained: data, a loss, an hour. Here a generator produces it from one sentence.
# The generator has learned from a small zoo of trained LoRAs. Its output is the weights of an
# adapter, which PEFT loads like any other.
#
# On tasks of its zoo this is close to choosing a stored adapter. So the answer of a *router*, which
# does nothing but choose, stands next to the generated one.
#
# At the smoke scale (the default) all models are tiny and created on the spot. This shows that the
# code runs. `scale = "desk"` uses real models and the released generator, and trains nothing.

# %% tags=["parameters"]
sentence = "Say whether the author of this line liked the film."  # any sentence of your own
scale = "smoke"  # one of smoke, desk, lab, paper
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository

# %%
import oral_lib
from oral_lib.prompting import routed

run = oral_lib.Run(scale, source, out)
if scale == "smoke":
    run.ready()  # trains a tiny zoo and generator, in a minute
tasks = {plan.base: plan.tasks for plan in run.planned}
name = next((n for n in ("tiny-causal", "smollm2-135m") if n in tasks), next(iter(tasks)))
base = run.base(name)
task = oral_lib.load_task(next(t for t in ("movie", "sst2") if t in tasks[name]))
print(base.describe())

# %% [markdown]
# ## Two sentences
# One is a held-out wording of a task of the zoo: no generator and no router has read it. The other
# is yours.

# %%
import pandas as pd

texts = {"held-out wording": task.paraphrases["development"][0], "your sentence": sentence}
where = {"base": name, "scale": scale, "source": run.source, "out": run.out}
loras = {}
for kind, text in texts.items():
    [loras[f"generated: {kind}"]] = oral_lib.prompt(text, **where)
    loras[f"router: {kind}"] = routed.route(text, **where)
pd.DataFrame(
    [[lora.card.text, lora.card.nearest, lora.card.distance] for lora in loras.values()],
    index=list(loras),
    columns=["text", "nearest adapter of the zoo", "distance"],
).style.format(precision=2)

# %% [markdown]
# ## Ask it something
# The base model without an adapter, and with each of the four.

# %%
rows = oral_lib.task_rows(task, run.source).validation[:100]
question = rows[0].text
print(question, "->", task.labels[rows[0].label])
for kind, lora in {"no adapter": None, **loras}.items():
    print(f"  {kind:28}", oral_lib.ask(base, lora, question, task=task))

# %% [markdown]
# ## Before and after
# The same on 100 validation rows. An encoder without an adapter has an untrained head: its answers
# mean nothing.

# %%
adapters = {"before": base.lora_init()}  # B = 0: equals the base model
adapters |= {kind: lora.tensors for kind, lora in loras.items()}
answers, accuracy = oral_lib.compare(base, task, rows, adapters)
answers.head(6)

# %%
accuracy.to_frame().style.format("{:.0%}")

# %% [markdown]
# ## A folder for PEFT
# `save` writes a standard PEFT folder with a model card. The generator is no longer needed.

# %%
from peft import PeftModel

lora = loras["generated: held-out wording"]
folder = lora.save(run.root / "quickstart-lora", overwrite=True)
print(*sorted(path.name for path in folder.iterdir()), sep="\n")
frozen = run.base(name).model
model = PeftModel.from_pretrained(frozen, folder)
print(type(model).__name__, "with", len(lora.tensors), "generated tensors")

# %%
from IPython.display import Markdown

card = (folder / "README.md").read_text()
Markdown(card.split("---", 2)[2])

# %% [markdown]
# ## What to conclude
# One sentence changed the model. Where the router does as well, choosing among stored adapters was
# enough. `10_language` compares this change with training and with all baselines. `50_control`
# steers the generator, `80_novelty` shows what a sample is, `01_method` how it is computed.
