"""What a sample is: its convex weights over the adapters of the zoo."""

import pandas as pd

from oral_lib.experiments.studies.control import Bench
from oral_lib.method import projection, tokenization
from oral_lib.tasks.task import load_task


def weights(bench: Bench, **changes) -> pd.DataFrame:
    """The convex weights of samples over the zoo: a row a text, sample and adapter of the zoo.

    The weights belong to the point of the convex hull closest to the sample. `outside` is the
    distance from that point, as a share of the sample's distance from the LoRA initialisation. It
    is 0 for the projection on the hull.

    Args:
        bench: base model, generator and zoo.
        changes: fields of `SamplingConfig`, such as `projection`.

    Returns:
        Columns text_of, sample, task, seed, weight, outside.
    """
    entry = bench.generator.bases[bench.model.name]
    statistics = entry.statistics.to("cpu")

    def tokens(adapters):
        values = tokenization.encode(entry.layout, adapters)
        return statistics.normalise(values).flatten(1)  # [n, l r]

    zoo = tokens([member.tensors for member in bench.members])
    rows = []
    for text_of in bench.tasks:
        samples = tokens(bench.samples(bench.conditions(load_task(text_of).description), **changes))
        shares = projection.convex_weights(zoo, samples)  # [b, n]
        outside = (samples - shares @ zoo).norm(dim=1) / samples.norm(dim=1)
        for sample, (row, gap) in enumerate(zip(shares.tolist(), outside.tolist(), strict=True)):
            about = {"text_of": text_of, "sample": sample, "outside": gap}
            for member, weight in zip(bench.members, row, strict=True):
                place = {"task": member.task, "seed": member.seed, "weight": weight}
                rows.append(about | place)
    columns = ["text_of", "sample", "task", "seed", "weight", "outside"]
    return pd.DataFrame(rows, columns=columns)
