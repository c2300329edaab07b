"""Adapters from texts and examples, written by a trained generator of intents.

Letters: T tasks, e size of an embedding, v values of an adapter.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from oral_lib import seeds
from oral_lib.experiments.model_cache import ModelCache
from oral_lib.experiments.side_tables.intents import folder_bytes
from oral_lib.method.conditioning import Examples
from oral_lib.method.config import SamplingConfig
from oral_lib.method.model import ORAL
from oral_lib.method.tokenization import flat

_WRITTEN = 16  # adapters written at once
METHOD_OF = {"through_base": "generated_through_base", "weights": "generated"}  # by kind of job


class Writing:
    """Writes adapters of `base` from texts and examples.

    Args:
        network: a trained network.
        sampling: how it is sampled.
        base: name of the base model.
        seed: of the initial noise.
        stored_bytes: of the network's files.
    """

    def __init__(
        self,
        network: ORAL,
        sampling: SamplingConfig,
        base: str,
        seed: int = 0,
        stored_bytes: float = math.nan,
    ):
        self.network, self.sampling, self.base, self.seed = network, sampling, base, seed
        self.stored_bytes = stored_bytes
        self.reads_examples = network.config.examples

    @torch.inference_mode()
    def __call__(
        self, texts: Tensor, given: Tensor | None = None, examples: Examples | None = None
    ) -> Tensor:
        """[T, v] adapters on the CPU, in the order of `lora.stacked.Stack`.

        Args:
            texts: [T, e] embeddings of the tasks' texts.
            given: bool [T], False: without text (default: all with text).
            examples: labelled rows of the T tasks.
        """
        network, entry = self.network, self.network.bases[self.base]
        device, statistics = network.device, entry.statistics
        stream = seeds.generator(self.seed, "sample", self.base)
        given = torch.ones(len(texts), dtype=torch.bool) if given is None else given
        parts = []
        for first in range(0, len(texts), _WRITTEN):
            chosen = slice(first, first + _WRITTEN)
            text, has_text = texts[chosen].to(device), given[chosen].to(device)
            rows = examples and Examples(*(part[chosen].to(device) for part in examples))
            noise = [network.noise(self.base, self.sampling, stream) for _ in range(len(text))]
            c = network.conditions(self.base, text, has_text, examples=rows)
            k0 = network.sample(self.base, c, torch.stack(noise).to(device), self.sampling)
            parts.append(flat(entry.layout, statistics.denormalise(k0)).cpu())
        return torch.cat(parts)


def writings(
    names: Mapping[str, str], base: str, seed: int, cache: ModelCache
) -> dict[str, Writing]:
    """What writes adapters of `base`, by method, for the networks `names` (by kind) of a run."""
    written = {}
    for kind, name in names.items():
        generator, stored_bytes = cache.generator(name), folder_bytes(cache.root / name)
        about = generator.network, generator.sampling, base, seed, stored_bytes
        written[METHOD_OF[kind]] = Writing(*about)
    return written
