# %% [markdown]
# # Unseen intents: one sentence in place of labelled rows
#
# A task asks whether a message is about a topic. All messages and sentences of some topics are kept
# out of training. For these topics the generator writes an adapter from one sentence, without rows
# and without training. It was trained through the frozen base models: the loss of each adapter on
# rows of its task flows back into the generator. The doubt: the adapter of the nearest topic, an
# average, the cosine of sentence and message, or one LoRA that reads the sentence with each message
# may do as well. All of them are measured on the same rows.

# %% tags=["parameters"]
base = ""  # the base model of the example; empty: the first of the scale
seed = 0  # 0 or more; of the generated adapter and the rows of the example
scale = "smoke"  # one of smoke, desk, lab
source = "packages"  # packages, hub or local:DIR; has no effect at the smoke scale
out = ""  # the folder of runs/ and results/; empty: the repository


# %%
import pandas as pd

import oral_lib
from oral_lib.tasks.intents import family

run = oral_lib.Run(scale, source, out, "intents").ready()
intents = family.load_family(run.source, scale)
tasks = {split: intents.tasks(split) for split in run.planned[0].tasks}
n_topics = len(intents.intents)
print(f"{len(intents.messages)} messages, {len(intents.seen)} of {n_topics} topics in training")
pd.DataFrame(
    [(split, len(of), of[0].name, of[0].texts["train"][0]) for split, of in tasks.items()],
    columns=["split", "tasks", "first task", "its first sentence"],
)

# %% [markdown]
# L0 has seen topics in wordings that were not trained on, L1 unseen unions of seen topics, L2 unseen
# topics. For L3 the generator was trained on one set of messages and is tested on another. A scale
# may measure only some of them.
#
# ## One unseen topic
# Two answers to test messages: of the base model, and of the base model with the adapter that was
# generated from the sentence. Half of the messages are about the topic.

# %%
from oral_lib.tasks.rows import Row

task = tasks["L2"][0]
numbers, labels = family.draw_rows(intents, task, "test", 4, 4, seed)
messages = [intents.messages[number] for number in numbers]
rows = [Row(m.key, m.text, int(label)) for m, label in zip(messages, labels, strict=True)]
model = run.base(base or run.planned[0].base)
[sentence, *_] = task.texts["train"]
[adapter] = run.generator("through_base").generate(sentence, model.name, 1, seed)
print(sentence)
answers, accuracy = oral_lib.compare(
    model, family.MESSAGE, rows, {"base": model.lora_init(), "generated": adapter}
)
answers

# %% [markdown]
# ## All tasks and methods
# Means over the tasks of a split. Intervals are for new tasks, rows, training runs and samples.
# *Rows* is the number of labelled rows from which a LoRA trained on the task is as good.

# %%
from oral_lib.report.intents.results import IntentsResults

metrics, items = run.measured()
results = IntentsResults(metrics["source"].iloc[0], metrics, items, run.root)
results.summary

# %%
results.equivalent_figure()

# %%
results.task_dots("L2")

# %% [markdown]
# What a method takes to make an adapter and to answer a message, and what it stores:

# %%
from IPython.display import display

from oral_lib.report.intents.tables import costs_table

costs_table(results.costs[results.costs.split == "L2"])

# %% [markdown]
# Whose sentence answers whose messages: the diagonal is a task's own.

# %%
for figure in results.text_maps().values():
    display(figure)

# %% [markdown]
# ## Were the aims reached?
# They were set before the test rows were read.

# %%
print(results.findings)
results.aims_table
