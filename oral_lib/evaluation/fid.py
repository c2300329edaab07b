"""The Fréchet distance of two sets of pictures, over features of a frozen network.

    d^2 = |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))

with means m and covariances C of the features [n, f]. With centred features X and X', C = X^T X /
(n - 1), and the eigenvalues of C C' are the squared singular values of X X'^T / sqrt((n - 1)
(n' - 1)): so no root of a matrix is taken, and fewer pictures than features do no harm to it. What
few pictures do is to raise the distance: compare distances of equal n alone.

Only over the features of TensorFlow's Inception network is it the FID of the literature: see
`Inception`. Where its weights are not there, a backbone of this project serves, and the metric is
named after it.
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

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # as pytorch-fid publishes them
BATCH = 64  # pictures read at once
RESAMPLED = 20  # times, for a standard error


def distance(one: Tensor, other: Tensor) -> float:
    """d^2 of features one [n, f] and other [n', f], in float64. OralError for fewer than two
    pictures a set, for sets of different features and for features that are not finite."""
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise OralError(
            f"features {tuple(one.shape)} and {tuple(other.shape)} cannot be compared: both must "
            "be [pictures, features] of one network."
        )
    if min(len(one), len(other)) < 2:
        raise OralError(
            f"a Fréchet distance of {len(one)} and {len(other)} pictures: each set needs two."
        )
    if not (one.isfinite().all() and other.isfinite().all()):
        raise OralError("a Fréchet distance of features that are not finite: check the pictures.")
    apart, sides = one.double().mean(0) - other.double().mean(0), []
    for features in (one.double(), other.double()):
        centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
        if len(centred) > centred.shape[1]:  # R^T R is X^T X, too
            centred = torch.linalg.qr(centred, mode="r").R
        sides.append(centred)
    x, y = sides
    cross = torch.linalg.svdvals(x @ y.T).sum()
    return max(0.0, (apart.square().sum() + x.square().sum() + y.square().sum() - 2 * cross).item())


def spread(one: Tensor, other: Tensor, draw: torch.Generator) -> float:
    """The standard error of `distance` over new pictures like `one` [n, f]: its standard deviation
    over RESAMPLED draws of n of them, with replacement."""
    chosen = torch.randint(len(one), (RESAMPLED, len(one)), generator=draw)
    found = [distance(one[places], other) for places in chosen.to(one.device)]
    return torch.tensor(found).std().item()


class Features:
    """What the head of a backbone reads: pictures uint8 [n, 3, height, width] -> float32 [n, f] on
    the CPU. They are resized with antialiasing as the backbone wants them."""

    def __init__(self, backbone: str, source: str, device: str | torch.device = "cpu"):
        self.base = loading.load(backbone, source=source, device=device, dtype=torch.float32)
        self.model, self.metric = self.base.model, f"frechet_{backbone}"

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        parts = [self._read(some.to(device).float()) for some in pictures.split(BATCH)]
        return torch.cat(parts).float().cpu()

    def _read(self, pictures: Tensor) -> Tensor:
        base, how = self.base, {"mode": "bicubic", "antialias": True}
        seen = F.interpolate(pictures, (base.pixels, base.pixels), **how).clamp(0, 255)
        states = base.model.forward_features(base.normalised(seen.flatten(1)))
        return base.model.forward_head(states, pre_logits=True)


class Inception(Features):
    """The same of the network that FID is defined by, as pytorch-fid builds it: f = 2048.

    PreflightError without that package, or when `file` is not the one that it publishes, which is
    told by its hash; nothing in it is executed.
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
            model = inception.InceptionV3([3])  # it would download them
        self.model = model.to(device).eval()  # by the statistics it was trained with

    def _read(self, pictures: Tensor) -> Tensor:
        return self.model(pictures / 255)[0].flatten(1)


def network(backbone: str, source: str, device: str | torch.device = "cpu") -> Features:
    """Inception where `source` is a folder that has its weights in models/inception, else
    `backbone`."""
    _, folder = sources.parse_source(source)
    file = folder and folder / "models" / "inception" / WEIGHTS
    if file and file.is_file():
        return Inception(file, device)
    return Features(backbone, source, device)
