"""The adapters of one base model in the form that training reads.

Letters: a adapters, l tokens, k values a token, r components a token, e size of an embedding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oral_lib.errors import UsageError
from oral_lib.lora.adapter import Adapter
from oral_lib.method.base_entry import BaseEntry
from oral_lib.method.config import GeneratorConfig
from oral_lib.method.normalization import TokenStatistics, procrustes_rotation
from oral_lib.method.projection import ZooProjection
from oral_lib.method.tokenization import Layout, encode


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class TrainingSet:
    """The adapters of one base model in the form that training reads.

    Args:
        tokens: [a, l, k or r] normalised.
        members: [tasks, n] adapter indices of each task, repeated to equal length n.
        texts: [tasks, wordings, e] unit embeddings.
        layout: how the adapters are cut into tokens.
        statistics: what normalised the tokens.
        task_means: mean components [r] of each task, which later base models are aligned to.

    >>> start = {"q.lora_A.weight": torch.ones(2, 8), "q.lora_B.weight": torch.zeros(8, 2)}
    >>> zoo = [{n: t + torch.randn_like(t) for n, t in start.items()} for _ in range(4)]
    >>> tasks = ["cheerful", "cheerful", "formal", "formal"]
    >>> texts = {task: torch.randn(3, 16) for task in tasks}  # 3 wordings each
    >>> config = GeneratorConfig(k=8, components=4)
    >>> data = TrainingSet.of(Layout.of(start, 8), start, zoo, tasks, texts, config)
    >>> data.tokens.shape  # 4 adapters of 4 tokens of 4 components
    torch.Size([4, 4, 4])
    """

    tokens: Tensor
    members: Tensor
    texts: Tensor
    layout: Layout
    statistics: TokenStatistics
    task_means: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        layout: Layout,
        start: Adapter,
        adapters: Sequence[Adapter],
        tasks: Sequence[str],
        text_embeddings: Mapping[str, Tensor],
        config: GeneratorConfig | None = None,
        *,
        align_to: Mapping[str, Tensor] | None = None,
    ) -> "TrainingSet":
        """The training set of `adapters`.

        Statistics are centred on the shared LoRA initialisation and pooled over all tasks: all-zero
        tokens decode to `start`, and no task leaks through the statistics.

        Args:
            layout: that of every adapter.
            start: the LoRA initialisation that all adapters share.
            adapters: tensors by their names in PEFT's saved state dict.
            tasks: the task of each adapter.
            text_embeddings: [wordings, e] of each task. Where tasks have different numbers of
                wordings, the first ones are used, as many as every task has.
            config: that of the network (default: `GeneratorConfig(k=layout.k)`).
            align_to: `task_means` of other base models. With component_rotation "bases" the
                components are rotated to agree with them on shared tasks.

        Raises:
            UsageError: adapters, tasks and texts do not match one another or the layout.
        """
        config = config or GeneratorConfig(k=layout.k)
        if not adapters or len(adapters) != len(tasks):
            raise UsageError(
                f"{len(adapters)} adapters and {len(tasks)} tasks: name one task for each adapter."
            )
        if missing := sorted({*tasks} - text_embeddings.keys()):
            raise UsageError(f"no text embeddings for task {missing[0]!r}: give [wordings, e].")
        values = encode(layout, adapters)
        statistics = config.fit(layout, values, encode(layout, [start])[0])
        tokens, means = statistics.normalise(values), {}
        if config.components and config.component_rotation == "bases":
            means = _task_means(tokens, tasks)
            rotation = _alignment(means, align_to or {}, tokens.shape[-1])
            statistics, tokens = statistics.rotated(rotation), tokens @ rotation
            means = {task: mean @ rotation for task, mean in means.items()}
        numbers: dict[str, list[int]] = {}
        for number, task in enumerate(tasks):
            numbers.setdefault(task, []).append(number)
        longest = math.lcm(*map(len, numbers.values()))  # repeats keep the draw uniform
        table = [chosen * (longest // len(chosen)) for chosen in numbers.values()]
        fewest = min(len(text_embeddings[task]) for task in numbers)
        texts = torch.stack([text_embeddings[task][:fewest] for task in numbers])
        return cls(tokens, torch.tensor(table), texts, layout, statistics, means)

    def base(
        self, description: Tensor, fingerprint: Tensor, peft_config: dict | None = None
    ) -> BaseEntry:
        """The entry of this base model for `ORAL`.

        Args:
            description: [e] embedding of the base model's description, by the encoder of the texts.
            fingerprint: `conditioning.fingerprint` of its weights.
            peft_config: the PEFT configuration of the adapters, to save generated ones with.
        """
        projection = ZooProjection.of(self.tokens)
        return BaseEntry(
            self.layout, self.statistics, projection, description, fingerprint, peft_config
        )

    def to(self, device: str | torch.device) -> "TrainingSet":
        """The same set with what a step reads on `device`."""
        moved = (self.tokens.to(device), self.members.to(device), self.texts.to(device))
        return TrainingSet(*moved, self.layout, self.statistics, self.task_means)


def _task_means(tokens: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Mean components [r] of each task in `tokens` [a, l, r]."""
    return {
        task: tokens[torch.tensor([task == other for other in tasks])].mean((0, 1))
        for task in dict.fromkeys(tasks)
    }


def _alignment(means: Mapping[str, Tensor], target: Mapping[str, Tensor], size: int) -> Tensor:
    """Rotation [r, r] that aligns task `means` with the means in `target` on shared tasks."""
    if shared := [task for task in means if task in target]:
        return procrustes_rotation(
            *(torch.stack([side[task] for task in shared]) for side in (means, target))
        )
    return torch.eye(size)
