"""The Fréchet distance between two sets of images, over features of a frozen network.

    d^2 = |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))

with means m and covariances C of the features [n, f]. With centred features X and X', C = X^T X /
(n - 1), and the eigenvalues of C C' are the squared singular values of X X'^T / sqrt((n - 1)
(n' - 1)). So no matrix square root is computed, and n may be smaller than f. The distance is biased
upwards for small n: compare only distances of equal n.

It is the FID of the literature only over the features of TensorFlow's Inception network: see
`Inception`. Without its weights a backbone of this project is used, and the metric has its name.
"""

from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from oral_lib import storage
from oral_lib.assets import sources
from oral_lib.errors import OralError, PreflightError
from oral_lib.models import loading

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"  # as pytorch-fid publishes them
_BATCH = 64  # images in a forward pass
RESAMPLES = 20  # draws for a standard error


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """d^2 of features one [n, f] and other [n', f], in float64.

    Raises:
        OralError: for fewer than two images in a set, sets with different features, or features
            that are not finite.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise OralError(
            f"features {tuple(one.shape)} and {tuple(other.shape)} cannot be compared: both must "
            "be [images, features] of one network."
        )
    if min(len(one), len(other)) < 2:
        raise OralError(
            f"a Fréchet distance of {len(one)} and {len(other)} images: each set requires two."
        )
    if not (one.isfinite().all() and other.isfinite().all()):
        raise OralError("a Fréchet distance of features that are not finite: check the images.")
    difference, factors = one.double().mean(0) - other.double().mean(0), []  # [f]
    for features in (one.double(), other.double()):
        centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
        if len(centred) > centred.shape[1]:  # R^T R equals X^T X
            centred = torch.linalg.qr(centred, mode="r").R
        factors.append(centred)  # [min(n, f), f]
    x, y = factors
    cross = torch.linalg.svdvals(x @ y.T).sum()
    return max(
        0.0, (difference.square().sum() + x.square().sum() + y.square().sum() - 2 * cross).item()
    )


def standard_error(one: Tensor, other: Tensor, draw: torch.Generator) -> float:
    """The bootstrap standard error of `frechet_distance` over the images of `one` [n, f]: its
    standard deviation over RESAMPLES draws of n images with replacement."""
    indices = torch.randint(len(one), (RESAMPLES, len(one)), generator=draw)
    distances = [frechet_distance(one[index], other) for index in indices.to(one.device)]
    return torch.tensor(distances).std().item()


class Features:
    """The input of the head of a backbone: images uint8 [n, 3, height, width] -> float32 [n, f] on
    the CPU. Images are resized with antialiasing to the backbone's size."""

    def __init__(self, backbone: str, source: str, device: str | torch.device = "cpu"):
        self.base = loading.load(backbone, source=source, device=device, dtype=torch.float32)
        self.model, self.metric = self.base.model, f"frechet_{backbone}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        batches = [self._features(batch.to(device).float()) for batch in images.split(_BATCH)]
        return torch.cat(batches).float().cpu()

    def _features(self, images: Tensor) -> Tensor:
        base, size = self.base, (self.base.pixels, self.base.pixels)
        resized = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 255)
        states = base.model.forward_features(base.normalised(resized.flatten(1)))
        return base.model.forward_head(states, pre_logits=True)  # [b, f]


class Inception(Features):
    """Features of the network that defines FID, as pytorch-fid builds it: f = 2048.

    Only tensors are loaded from the file, no code.

    Args:
        file: the weights that pytorch-fid publishes.
        device: where the network is loaded to.

    Raises:
        PreflightError: without the package, or if the hash of `file` is not the one in its name.
    """

    metric = "fid"

    def __init__(self, file: Path, device: str | torch.device = "cpu"):
        if find_spec("pytorch_fid") is None:
            raise PreflightError(
                "FID needs pytorch-fid, which is not installed: run "
                "python -m pip install --no-deps 'pytorch-fid==0.3.0'."
            )
        if not storage.sha256(file).startswith(file.stem.rpartition("-")[2]):
            raise PreflightError(f"{file} is damaged: its hash is not the one in its name.")
        from pytorch_fid import inception

        state = torch.load(file, map_location="cpu", weights_only=True)
        with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
            model = inception.InceptionV3([3])  # without the patch it downloads the weights
        self.model = model.to(device).eval()  # BatchNorm with the stored statistics

    def _features(self, images: Tensor) -> Tensor:
        return self.model(images / 255)[0].flatten(1)  # [b, 2048]


def network(backbone: str, source: str, device: str | torch.device = "cpu") -> Features:
    """Inception if `source` is a local folder with its weights in models/inception, else
    `backbone`.

    Args:
        backbone: name of an image backbone.
        source: of the run.
        device: where the network is loaded to.
    """
    _, folder = sources.parse_source(source)
    file = folder and folder / "models" / "inception" / INCEPTION
    if file and file.is_file():
        return Inception(file, device)
    return Features(backbone, source, device)
