"""What a generator stores of each base model that it knows: all that is fixed before training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oral_lib.errors import OralError
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.projection import ZooProjection
from oral_lib.method.tokenization import Layout


class BaseEntry(nn.Module):
    """Layout, statistics, mixtures of the zoo (None in a generator from before there were any),
    c_model (`structure` [e], `fingerprint` [f]) and LoRA configuration of a base model; `types` are
    the tensor types of all base models, in the generator's order."""

    def __init__(
        self,
        layout: Layout,
        statistics: TokenStatistics,
        mixtures: ZooProjection | None,
        structure: Tensor,
        fingerprint: Tensor,
        types: Sequence[str],
        peft_config: dict,
    ):
        super().__init__()
        if statistics.center.shape != (layout.l, layout.k):
            raise OralError("the layout of a base model does not fit its statistics.")
        size = layout.k if statistics.basis is None else statistics.basis.shape[1]
        if mixtures is not None and mixtures.directions.shape[1:] != (layout.l, size):
            raise OralError("the layout of a base model does not fit the mixtures of its zoo.")
        self.layout, self.peft_config = layout, peft_config
        for name, tensor in {
            "center": statistics.center,
            "scale": statistics.scale,
            "basis": statistics.basis,
            "directions": mixtures and mixtures.directions,
            "places": mixtures and mixtures.places,
            "structure": structure,
            "fingerprint": fingerprint,
        }.items():
            self.register_buffer(name, tensor)
        layer, index, kind = layout.positions.unbind(-1)
        kinds = torch.tensor([types.index(t) for t in layout.types])
        for name, tensor in {"layer": layer, "index": index, "kind": kinds[kind]}.items():
            self.register_buffer(name, tensor, persistent=False)
        self.register_buffer("mask", statistics.mask(layout), persistent=False)
        self.register_buffer("squared_length", statistics.squared_length, persistent=False)

    @property
    def statistics(self) -> TokenStatistics:
        return TokenStatistics(self.center, self.scale, self.basis, self.squared_length)

    @property
    def mixtures(self) -> ZooProjection | None:
        return None if self.places is None else ZooProjection(self.directions, self.places)

    @classmethod
    def restored(
        cls, layout: Layout, state: dict[str, Tensor], at: str, types: Sequence[str], peft_config
    ) -> "BaseEntry":
        """The one whose buffers stand in `state` under the name `at`. KeyError where one lacks."""
        statistics = TokenStatistics(
            state[f"{at}.center"], state[f"{at}.scale"], state.get(f"{at}.basis")
        )
        mixtures = None
        if f"{at}.places" in state:
            mixtures = ZooProjection(state[f"{at}.directions"], state[f"{at}.places"])
        c_model = state[f"{at}.structure"], state[f"{at}.fingerprint"]
        return cls(layout, statistics, mixtures, *c_model, types, peft_config)
