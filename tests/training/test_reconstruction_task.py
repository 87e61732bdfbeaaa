"""What the reconstruction task loses and measures, against NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

import branchprune as bp
from branchprune.lightning import ReconstructionTask
from branchprune.models import Autoencoder
from branchprune.training.losses import L1SSIM

IMAGES, TARGETS = torch.rand(2, 5, 3, 16, 14, generator=torch.Generator().manual_seed(0))


def similarity(a, b, window):
    """Return the mean SSIM (Wang et al., 2004) of images (N, C, H, W) in [0, 1], by its formula."""
    half = window // 2

    def mean(x):
        smooth = gaussian_filter(x, 1.5, radius=half, axes=(2, 3))
        return smooth[..., half:-half, half:-half]

    a, b = a.double().numpy(), b.double().numpy()
    ma, mb = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    light = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
    return float((light * (2 * covariance + 0.03**2) / (va + vb + 0.03**2)).mean())


@pytest.mark.parametrize(("l1", "ssim", "window"), [(1.0, 1.0, 11), (0.3, 2.0, 7), (0.0, 1.0, 11)])
def test_the_loss_is_that_of_the_formula(l1, ssim, window):
    alike = (IMAGES + 3 * TARGETS) / 4
    expected = l1 * float((alike - TARGETS).abs().double().mean())
    expected += ssim * (1 - similarity(alike, TARGETS, window))
    found = L1SSIM(l1, ssim, window)(alike, TARGETS)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_psnr_is_the_mean_of_that_of_each_image():
    """Of one that is reproduced exactly, too, where it would be infinite."""
    task, logged = ReconstructionTask(nn.Identity(), window=5), {}
    task.log = lambda name, value, **_: logged.update({name: value.item()})
    shares = torch.tensor([0.0, 0.1, 0.4, 0.7, 1.0])[:, None, None, None]
    images = torch.lerp(TARGETS, IMAGES, shares)
    task.test_step((images, TARGETS), 0)
    errors = ((images - TARGETS).double() ** 2).flatten(1).mean(1).numpy()
    assert errors[0] == 0
    expected = np.mean([100.0, *(-10 * np.log10(errors[1:]))])
    assert logged["metric/test_psnr"] == pytest.approx(expected, rel=1e-5)
    assert logged["metric/test_ssim"] == pytest.approx(similarity(images, TARGETS, 5), rel=1e-4)
    absolute = float((images - TARGETS).abs().mean())
    assert logged["loss/test"] == pytest.approx(absolute + 1 - logged["metric/test_ssim"], rel=1e-4)


def test_features_add_to_the_loss_of_training_alone():
    dense = Autoencoder([[4]], [[4]])
    blended = bp.attach(dense, bp.plan(dense, IMAGES[:1]))
    blended.alpha = 0.5
    task, logged = ReconstructionTask(dense, window=5, feature_weight=0.25), {}
    task.log = lambda name, value, **_: logged.update({name: value.item()})
    task.model = blended.eval()
    batch = IMAGES, TARGETS
    plain = L1SSIM(window=5)(blended(IMAGES), TARGETS)
    lost = (task.training_step(batch, 0) - plain).item()
    assert lost == pytest.approx(0.25 * logged["loss/features"], rel=1e-3) and lost > 0.01
    task.validation_step(batch, 0)
    assert logged["loss/val"] == pytest.approx(logged["loss/train"] - lost)
