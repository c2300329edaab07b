"""The Fréchet distance: against closed forms, with few pictures, and what it refuses."""

import hashlib

import pytest
import torch

from oral_lib.errors import OralError, PreflightError
from oral_lib.evaluation import fid

torch.set_num_threads(1)


def drawn(n, f, seed):
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(n, f, seed):
    """[n, f] of mean zero and covariance one, exactly."""
    x = drawn(n, f, seed)
    return torch.linalg.qr(x - x.mean(0)).Q * (n - 1) ** 0.5


def test_of_gaussians_it_is_the_closed_form():
    x, y = whitened(400, 6, 0), whitened(300, 6, 1)
    one, other = torch.rand(2, 6, dtype=torch.float64) + 0.5
    shift = drawn(1, 6, 2)
    # covariances that commute: tr(C + C' - 2 (C C')^(1/2)) = sum (s - s')^2
    wanted = (shift.square().sum() + (one - other).square().sum()).item()
    assert fid.frechet_distance(x * one, y * other + shift) == pytest.approx(wanted, rel=1e-9)


def test_of_any_gaussians_it_is_what_the_root_of_a_matrix_gives():
    x, y = drawn(50, 5, 0) @ drawn(5, 5, 1), drawn(70, 5, 2) @ drawn(5, 5, 3) + 1
    a, b = x.T.cov(), y.T.cov()
    root = torch.linalg.eigvals(a @ b).sqrt().sum().real  # the trace of the root
    wanted = (x.mean(0) - y.mean(0)).square().sum() + (a + b).trace() - 2 * root
    assert fid.frechet_distance(x, y) == pytest.approx(wanted.item(), rel=1e-8)
    assert fid.frechet_distance(y, x) == pytest.approx(wanted.item(), rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 300), (40, 7)])
def test_few_pictures_give_a_finite_distance_which_is_zero_to_themselves(n, m):
    x, y = drawn(n, 64, 0).float(), drawn(m, 64, 1).float()
    assert 0 < fid.frechet_distance(x, y) < float("inf")
    assert fid.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert fid.standard_error(x, y, torch.Generator().manual_seed(0)) >= 0


def test_what_cannot_be_compared_is_refused(refused):
    x = drawn(4, 3, 0)
    with refused(OralError, "1 and 4 images"):
        fid.frechet_distance(x[:1], x)
    with refused(OralError, "(4, 3) and (4, 2)"):
        fid.frechet_distance(x, x[:, :2])
    with refused(OralError, "not finite"):
        fid.frechet_distance(x, torch.full_like(x, torch.nan))


def test_features_are_what_the_head_of_the_backbone_reads():
    network = fid.network("tiny-convnet", "made")
    assert network.metric == "frechet_tiny-convnet"
    pictures = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        seen = network.base.normalised(pictures.flatten(1))
        states = network.base.model.forward_features(seen)
        wanted = network.base.model.forward_head(states, pre_logits=True)
    torch.testing.assert_close(network(pictures), wanted)
    assert network(pictures[:, :, ::2, ::2]).shape == wanted.shape  # of any size


def test_fid_is_that_of_pytorch_fid_once_its_weights_are_in_the_folder(
    tmp_path, monkeypatch, refused
):
    made = pytest.importorskip("pytorch_fid.inception", reason="FID needs pytorch-fid")
    monkeypatch.setattr(made, "load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
    torch.manual_seed(0)
    whole = made.fid_inception_v3()
    monkeypatch.undo()
    file = tmp_path / "own.pth"
    torch.save(whole.state_dict(), file)
    name = f"own-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    monkeypatch.setattr(fid, "INCEPTION", name)
    folder = tmp_path / "models" / "inception"
    folder.mkdir(parents=True)
    file = file.rename(folder / name)
    network = fid.network("tiny-convnet", f"local:{tmp_path}")
    assert network.metric == "fid"
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    monkeypatch.setattr(made, "load_state_dict_from_url", lambda *_, **__: whole.state_dict())
    with torch.inference_mode():
        [wanted] = made.InceptionV3([3]).eval()(pictures / 255)
    assert wanted.shape == (2, 2048, 1, 1)
    torch.testing.assert_close(network(pictures), wanted.flatten(1))
    torch.testing.assert_close(network(pictures[:1]), wanted[:1].flatten(1))  # whatever is beside
    with file.open("ab") as stream:
        stream.write(b"more")
    with refused(PreflightError, name, "is damaged"):
        fid.network("tiny-convnet", f"local:{tmp_path}")


def test_without_pytorch_fid_the_way_to_it_is_told(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(fid, "find_spec", lambda name: None)
    with refused(PreflightError, "pytorch-fid", "pip install"):
        fid.Inception(tmp_path / fid.INCEPTION)
