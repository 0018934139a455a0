"""Distances against closed forms, torch-fidelity on the same features, and naive oracles."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from latentworks.metrics import distances
from latentworks.metrics.distances import bootstrap, fit_gaussian, frechet_between, frechet_distance, interval, kid, precision_recall
from latentworks.metrics.measurement import Measurement


def features(seed: int, n: int = 300, d: int = 16, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(7).standard_normal((d, d))
    return ((random.standard_normal((n, d)) * scale) @ mix + shift).astype(np.float32)


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Samples whose mean and unbiased covariance are exactly these."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_gaussians_in_closed_form() -> None:
    a, b = np.diag([1.0, 4.0, 0.25]), np.diag([9.0, 1.0, 0.01])
    mean = np.array([1.0, -2.0, 0.5])
    expected = (mean**2).sum() + ((np.sqrt(np.diag(a)) - np.sqrt(np.diag(b))) ** 2).sum()
    got = frechet_distance(with_moments(np.zeros(3), a, 50, 0), with_moments(mean, b, 80, 1))
    assert got == pytest.approx(expected, rel=1e-6)


def test_frechet_of_gaussians_that_do_not_commute() -> None:
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    product = a @ b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))  # trace of the root of a 2 x 2 matrix
    expected = np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(with_moments(np.zeros(2), a, 40, 0), with_moments(np.zeros(2), b, 30, 1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [400, 20], ids=["more samples than dimensions", "fewer"])
def test_frechet_equals_torch_fidelity(n: int) -> None:
    a, b = features(0, n, 32), features(1, n + 5, 32, shift=0.3, scale=1.2)
    statistics = [fid_features_to_statistics(torch.from_numpy(f).double()) for f in (a, b)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)


def test_frechet_is_zero_on_itself_symmetric_and_indifferent_to_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(0), features(1, shift=1.0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    whole = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(whole)
    monkeypatch.setattr(distances, "CHUNK", 7)
    assert frechet_distance(a, b) == pytest.approx(whole)


def test_kid_equals_torch_fidelity() -> None:
    a, b = features(0, 100), features(1, 100, shift=0.3)
    expected = kid_features_to_metric(
        *(torch.from_numpy(f).double() for f in (a, b)), kid_subsets=2, kid_subset_size=100, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=0, verbose=False,
    )  # fmt: skip
    assert kid(a, b, seed=0, subsets=2, subset_size=100).mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)


def test_kid_of_one_distribution_is_zero_on_average() -> None:
    distance = kid(features(0, 400), features(1, 400), seed=0, subsets=40, subset_size=100)
    assert abs(distance.mean) < 2 * distance.std


def test_kid_is_a_function_of_its_seed() -> None:
    a, b = features(0), features(1)
    assert kid(a, b, seed=3, subsets=4, subset_size=50) == kid(a, b, seed=3, subsets=4, subset_size=50)
    assert kid(a, b, seed=3, subsets=4, subset_size=50) != kid(a, b, seed=4, subsets=4, subset_size=50)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_torch_fidelity_in_any_chunks(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = features(0, 120, 6), features(1, 90, 6, scale=0.7)
    # float64 on both sides: in float32 torch.cdist is too coarse near ties
    r, g = (torch.from_numpy(f).double() for f in (real, generated))
    expected = prc_features_to_metric(g, r, prc_neighborhood=k, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    monkeypatch.setattr(distances, "CHUNK", 17)
    assert precision_recall(real, generated, k=k) == pytest.approx((expected["precision"], expected["recall"]), abs=1e-6)


def test_precision_and_recall_tell_a_collapse_from_noise() -> None:
    real = features(0, 200, 4)
    collapsed = precision_recall(real, real[:1] + 1e-3 * features(1, 200, 4))
    assert collapsed.precision == 1
    assert collapsed.recall < 0.05
    assert precision_recall(real, features(1, 200, 4, shift=100)) == (0, 0)


def test_bootstrap_interval_of_a_mean() -> None:
    rows = np.random.default_rng(0).standard_normal(400)
    low, high = interval(rows.mean(), bootstrap(lambda drawn: float(rows[drawn].mean()), len(rows), seed=1, resamples=400))
    assert low < rows.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)  # the standard error of 400 normal values is 1 / 20
    assert (low, high) == interval(rows.mean(), bootstrap(lambda drawn: float(rows[drawn].mean()), len(rows), seed=1, resamples=400))


def test_a_gaussian_of_rows_by_number_is_that_of_the_rows() -> None:
    x, drawn = features(0, 700, 5), np.random.default_rng(0).integers(700, size=700)
    whole, by_number = fit_gaussian(np.ascontiguousarray(x[drawn])), fit_gaussian(x, drawn)
    assert torch.equal(whole.mean, by_number.mean)
    assert torch.equal(whole.factor, by_number.factor)
    assert frechet_between(fit_gaussian(x), by_number) == frechet_distance(x, x[drawn]) > 0
    with pytest.raises(ValueError, match="1 images are too few"):
        fit_gaussian(x, drawn[:1])


def test_unequal_or_too_few_features_are_refused() -> None:
    with pytest.raises(ValueError, match="same network"):
        frechet_distance(features(0, d=4), features(0, d=5))
    with pytest.raises(ValueError, match="too few"):
        precision_recall(features(0, 3), features(1))
    with pytest.raises(ValueError, match="subset_size 1000: use 2 to 50"):
        kid(features(0, 50), features(1), seed=0)


def test_a_measurement_is_printed_with_its_circumstances() -> None:
    measured = Measurement(
        "Fréchet distance", 12.3456, 500, "openmoji held-out (412)", "bicubic to 224", 3, "efficientnet-lite0", (11.0, 13.0)
    )
    assert str(measured) == (
        "Fréchet distance 12.35 [11, 13] (n 500, reference openmoji held-out (412), resize bicubic to 224, "
        "network efficientnet-lite0, seed 3; fewer than 10,000 images: compare only at equal n)"
    )
    assert (
        str(Measurement("PSNR", 31.25, 412, "held-out (412)", "none", unit="dB"))
        == "PSNR 31.25 dB (n 412, reference held-out (412), resize none)"
    )
