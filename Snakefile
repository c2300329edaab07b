# One rule a node of the plan (oral_lib/workflow/plan.py); no science here.
#
# ./reproduce.sh runs this file. On a cluster run it yourself, from the repository's root:
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
    NODES = graph.read(os.environ["ORAL_PLAN"])
else:
    scale = config.get("scale", scales.default_scale())
    source = "made" if scale == "smoke" else config.get("source", "packages")
    NODES = plan.nodes(scale, source, os.path.abspath(config.get("out", paths.ROOT)))


def here(paths):
    """Outputs relative to the run folder, which is the working directory: no path can be mistaken
    for a wildcard, and the folder may be moved."""
    return [os.path.relpath(path) for path in paths]


def reads(node):
    """An input function, because what a function returns is never searched for wildcards."""
    return lambda wildcards: [*here(node.inputs), *ancient(here(node.after))]


def runs(node):
    log = os.path.join("logs", f"{node.name}.log")
    words = [sys.executable, "-m", "oral_lib.runner.worker", node.name, log, *node.command]
    return lambda wildcards: shlex.join(words)


rule all:
    default_target: True
    input:
        lambda wildcards: [path for node in NODES for path in here(node.outputs)],


for place, node in enumerate(NODES):

    rule:
        name:
            re.sub(r"\W", "_", node.name)
        priority: len(NODES) - place
        input:
            reads(node),
        output:
            update(here(node.outputs)) if node.resumes else here(node.outputs),
        params:
            command=runs(node),
        threads:
            config.get("threads", 1)
        resources:
            mem_mb=node.memory_mb,
            gpu=node.gpu,
        shell:
            "{params.command}"
