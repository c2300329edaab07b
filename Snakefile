# One rule for each node of the plan (oral_lib/workflow/plan.py).
#
# ./reproduce.sh runs this file. On a cluster run it directly, from the root of the repository:
#   snakemake -s Snakefile --directory runs/paper/hub --config scale=paper source=hub threads=8 \
#     --executor slurm --jobs 50 --keep-going --rerun-triggers mtime input

import os
import re
import shlex
import sys

from oral_lib import paths, scales
from oral_lib.runner import nodes as graph
from oral_lib.workflow import plan

if "ORAL_PLAN" in os.environ:
    NODES = graph.read_plan(os.environ["ORAL_PLAN"])
else:
    scale = config.get("scale", scales.default_scale())
    source = "made" if scale == "smoke" else config.get("source", "packages")
    NODES = plan.nodes(scale, source, os.path.abspath(config.get("out", paths.ROOT)))


def relative(paths):
    """`paths` relative to the working directory, the run folder.

    So no part of a path is read as a wildcard, and the folder may be moved.
    """
    return [os.path.relpath(path) for path in paths]


def inputs(node):
    """An input function: what a function returns is not searched for wildcards."""
    return lambda wildcards: [*relative(node.inputs), *ancient(relative(node.after))]


def command(node):
    """A function that returns the shell command of `node`."""
    log = os.path.join("logs", f"{node.name}.log")
    words = [sys.executable, "-m", "oral_lib.runner.worker", node.name, log, *node.command]
    return lambda wildcards: shlex.join(words)


rule all:
    default_target: True
    input:
        lambda wildcards: [path for node in NODES for path in relative(node.outputs)],


for number, node in enumerate(NODES):

    rule:
        name:
            re.sub(r"\W", "_", node.name)
        priority: len(NODES) - number
        input:
            inputs(node),
        output:
            update(relative(node.outputs)) if node.resumes else relative(node.outputs),
        params:
            command=command(node),
        threads:
            config.get("threads", 1)
        resources:
            mem_mb=node.memory_mb,
            gpu=node.gpu,
        shell:
            "{params.command}"
