"""What a network stores of each of its base models.

Letters: l tokens, k values a token, r components a token, e size of a text embedding, f size of a
fingerprint.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from oral_lib.errors import OralError
from oral_lib.method.normalization import TokenStatistics
from oral_lib.method.projection import ZooProjection
from oral_lib.method.tokenization import Layout


class BaseEntry(nn.Module):
    """What a network stores of one base model: everything that is fixed before training.

    Args:
        layout: the tensors of its adapters and how they are cut into tokens.
        statistics: pooled over all tasks of the base model.
        projection: the zoo's adapters to project samples on; None: there is no projection.
        structure: [e] embedding of the description of the base model.
        fingerprint: [f] of its weights.
        peft_config: the PEFT configuration of its adapters, as JSON values.

    Raises:
        OralError: statistics or projection belong to another layout.
    """

    def __init__(
        self,
        layout: Layout,
        statistics: TokenStatistics,
        projection: ZooProjection | None,
        structure: Tensor,
        fingerprint: Tensor,
        peft_config: dict | None = None,
    ):
        super().__init__()
        if statistics.center.shape != (layout.l, layout.k):
            raise OralError("the layout of a base model does not fit its statistics.")
        size = layout.k if statistics.basis is None else statistics.basis.shape[1]
        if projection is not None and projection.directions.shape[1:] != (layout.l, size):
            raise OralError("the layout of a base model does not fit the projection on its zoo.")
        self.layout, self.peft_config, self.size = layout, peft_config or {}, size
        for name, tensor in {
            "center": statistics.center,
            "scale": statistics.scale,
            "basis": statistics.basis,
            "directions": projection and projection.directions,
            "coords": projection and projection.coordinates,
            "structure": structure,
            "fingerprint": fingerprint,
        }.items():
            self.register_buffer(name, tensor)
        layer, index, _ = layout.positions.unbind(-1)
        for name, tensor in {"layer": layer, "index": index}.items():
            self.register_buffer(name, tensor, persistent=False)
        self.register_buffer("mask", statistics.mask(layout), persistent=False)  # [l, k or r]
        self.register_buffer("squared_length", statistics.squared_length, persistent=False)

    @property
    def statistics(self) -> TokenStatistics:
        """The statistics, on the device of this module."""
        return TokenStatistics(self.center, self.scale, self.basis, self.squared_length)

    @property
    def projection(self) -> ZooProjection | None:
        """The zoo's adapters, on the device of this module."""
        if self.coords is None:
            return None
        return ZooProjection(self.directions, self.coords)

    @classmethod
    def restored(
        cls, layout: Layout, buffers: Mapping[str, Tensor], peft_config: dict
    ) -> "BaseEntry":
        """The entry that has `buffers`, by name. KeyError if one is missing."""
        statistics = TokenStatistics(buffers["center"], buffers["scale"], buffers.get("basis"))
        projection = None
        if "coords" in buffers:
            projection = ZooProjection(buffers["directions"], buffers["coords"])
        c_model = buffers["structure"], buffers["fingerprint"]
        return cls(layout, statistics, projection, *c_model, peft_config)
