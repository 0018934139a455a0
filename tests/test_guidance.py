"""Guidance: classifier-free equals guiding eps; classifiers, images and known pixels against closed forms; stacking; clear mistakes."""

import pytest
import torch

from latentworks.diffusion.guidance import classifier, classifier_free, descend, image, known_pixels
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.random import randn_like_per_image
from latentworks.types import Cond


class Recorder:
    """A stand-in for a model: some function of x_t, t and the mean context; remembers the batch sizes it was asked for."""

    def __init__(self, prediction: str = "eps") -> None:
        self.process = Process(ProcessConfig(prediction=prediction))
        self.sizes: list[int] = []

    def output(self, x_t: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        assert cond.context is not None
        return torch.sin(x_t + cond.context.mean(dim=(1, 2)).view(-1, 1, 1, 1)) + t.view(-1, 1, 1, 1) / 1000

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        self.sizes.append(len(x_t))
        return self.process.to_x0(self.output(x_t, t, cond), x_t, t)


def inputs() -> tuple[torch.Tensor, torch.Tensor, Cond, Cond]:
    g = torch.Generator().manual_seed(0)
    x_t, cond = torch.randn(3, 2, 4, 4, generator=g), Cond(context=torch.randn(3, 5, 8, generator=g) + 1)
    return x_t, torch.tensor([3, 400, 700]), cond, Cond(context=torch.zeros(3, 5, 8))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0, 10.0])
def test_equals_guiding_the_networks_own_output(prediction: str, scale: float) -> None:
    model, (x_t, t, cond, uncond) = Recorder(prediction), inputs()
    plain, empty = model.output(x_t, t, cond), model.output(x_t, t, uncond)
    expected = model.process.to_x0(empty + scale * (plain - empty), x_t, t)
    torch.testing.assert_close(classifier_free(model.predict, cond, uncond, scale)(x_t, t), expected, rtol=1e-4, atol=1e-4)
    assert model.sizes == [6]


def test_scale_one_is_one_plain_forward() -> None:
    model, (x_t, t, cond, uncond) = Recorder(), inputs()
    assert torch.equal(classifier_free(model.predict, cond, uncond, 1.0)(x_t, t), model.predict(x_t, t, cond))
    assert model.sizes == [3, 3]


def test_a_condition_equal_to_its_negative_changes_nothing() -> None:
    model, (x_t, t, cond, _) = Recorder(), inputs()
    torch.testing.assert_close(classifier_free(model.predict, cond, cond, 7.0)(x_t, t), model.predict(x_t, t, cond))


def test_mistakes_are_named() -> None:
    model, (_, _, cond, uncond) = Recorder(), inputs()
    with pytest.raises(ValueError, match="guidance scale: nan"):
        classifier_free(model.predict, cond, uncond, float("nan"))
    with pytest.raises(ValueError, match="differ in context"):
        classifier_free(model.predict, cond, Cond(), 2.0)
    with pytest.raises(ValueError, match=r"differ in context .*\(3, 5, 8\) and \(1, 5, 8\)"):
        classifier_free(model.predict, cond, Cond(context=torch.zeros(1, 5, 8)), 2.0)


# Two classes of pixels, each a Gaussian: everything below has a closed form. Class k of an image holds for each of its pixels.

MEANS, STDS = torch.tensor([-1.2, 0.8], dtype=torch.float64), torch.tensor([0.25, 0.5], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)


def class_logits(process: Process, x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(class, x_t) and E[x0 | x_t, class] for each class and pixel."""
    alpha, sigma = process.alpha[t].view(-1, 1, 1, 1), process.sigma[t].view(-1, 1, 1, 1)
    means, stds = MEANS.view(2, 1, 1, 1, 1), STDS.view(2, 1, 1, 1, 1)
    variance = alpha**2 * stds**2 + sigma**2
    logits = SHARES.log().view(2, 1, 1, 1, 1) - variance.log() / 2 - (x_t - alpha * means) ** 2 / (2 * variance)
    return logits, means + alpha * stds**2 / variance * (x_t - alpha * means)


@pytest.mark.parametrize("label", [0, 1])
def test_a_perfect_classifier_at_scale_one_gives_the_conditional_mean(label: int) -> None:
    """Of a mixture of two Gaussians: with sign and size wrong by anything this fails."""
    process = Process(ProcessConfig())
    x_t = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([10, 200, 600, 999])

    def mixture(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        logits, x0 = class_logits(process, x, t)
        return (torch.softmax(logits, dim=0) * x0).sum(0)

    def log_prob(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(class_logits(process, x, t)[0], dim=0)[label].sum(dim=(1, 2, 3))

    conditional = class_logits(process, x_t, t)[1][label]
    torch.testing.assert_close(classifier(mixture, log_prob, process, 1.0)(x_t, t), conditional, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # as in drivers
        doubled = classifier(mixture, log_prob, process, 2.0)(x_t, t)
    torch.testing.assert_close(doubled, 2 * conditional - mixture(x_t, t), rtol=1e-5, atol=1e-5)
    x = x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob(x, t).sum(), x)
    eps = [process.to_eps(x0.float(), x_t.float(), t) for x0 in (mixture(x_t, t), doubled)]
    sigma = process.at(t)[1]
    torch.testing.assert_close(eps[1], eps[0] - 2 * sigma * gradient.float(), rtol=1e-3, atol=1e-3)  # condition_score, arXiv:2105.05233


class Gaussian:
    """Data x ~ N(mean, covariance) of 6 values, seen as y = view x + noise: its denoiser and what y says, in closed form."""

    def __init__(self, t: int) -> None:
        g = torch.Generator().manual_seed(1)
        self.process = Process(ProcessConfig())
        self.alpha, self.sigma = self.process.level(t)
        root, self.view = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (6, 2))
        self.mean, self.covariance = torch.linspace(-1, 1, 6, dtype=torch.float64), root @ root.T / 6
        self.x_t, self.y = torch.randn(3, 1, 2, 3, generator=g, dtype=torch.float64), torch.randn(3, 2, generator=g, dtype=torch.float64)
        self.t = torch.full((3,), t)
        noisy = self.alpha**2 * self.covariance + self.sigma**2 * torch.eye(6, dtype=torch.float64)
        self.gain = self.alpha * self.covariance @ torch.linalg.inv(noisy)
        self.left = self.covariance - self.alpha * self.gain @ self.covariance  # Cov[x0 | x_t]

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (self.mean + (x_t.flatten(1) - self.alpha * self.mean) @ self.gain.T).view(x_t.shape)

    def loss(self, covariance: torch.Tensor):
        """-log N(y; view x0, covariance) up to a constant, one value an image."""
        inverse = torch.linalg.inv(covariance)

        def loss_of_x0(x0: torch.Tensor) -> torch.Tensor:
            error = self.y[: len(x0)] - x0.flatten(1) @ self.view.T
            return ((error @ inverse) * error).sum(dim=1) / 2

        return loss_of_x0


@pytest.mark.parametrize("t", [5, 300, 999])
def test_image_guidance_of_gaussian_data_gives_the_conditional_mean(t: int) -> None:
    """E[x0 | x_t, y], by conditioning the joint Gaussian of (x0, x_t, y), where the loss knows how far x0(x_t) may be off."""
    data = Gaussian(t)
    spread, eye = 0.1 * torch.eye(2, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    seen = torch.cat([data.alpha * eye, data.view])  # of x0, in (x_t, y)
    noise = torch.block_diag(data.sigma**2 * eye, spread)
    gain = data.covariance @ seen.T @ torch.linalg.inv(seen @ data.covariance @ seen.T + noise)
    error = torch.cat([data.x_t.flatten(1), data.y], dim=1) - data.mean @ seen.T
    expected = (data.mean + error @ gain.T).view(3, 1, 2, 3)
    guided = image(data.denoise, data.loss(data.view @ data.left @ data.view.T + spread), data.process, 1.0)
    with torch.no_grad():
        result = guided(data.x_t, data.t)
    assert not result.requires_grad
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [5, 300, 999])
def test_image_guidance_with_noise_gives_the_mean_of_unit_data_given_a_noisy_view(t: int) -> None:
    """x0 ~ N(0, 1) and y = x0 + noise e, value by value: E[x0 | x_t, y] in closed form."""
    process, noise, x0, y = Process(ProcessConfig()), 0.2, *torch.randn(2, 3, 1, 2, 3, generator=torch.Generator().manual_seed(t))
    steps = torch.full((3,), t)
    alpha, sigma = process.at(steps)
    x_t = process.add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)), steps)
    scale, left = alpha / (alpha**2 + sigma**2), sigma**2 / (alpha**2 + sigma**2)
    guided = image(lambda x, _: scale * x, lambda x0: (x0 - y).square().flatten(1).sum(dim=1) / 2, process, 1.0, noise)
    expected = scale * x_t + left / (left + noise**2) * (y - scale * x_t)
    torch.testing.assert_close(guided(x_t, steps), expected, rtol=1e-4, atol=1e-5)


def test_image_guidance_descends_and_leaves_other_images_alone() -> None:
    data = Gaussian(300)
    loss = data.loss(torch.eye(2, dtype=torch.float64))
    guided = image(data.denoise, loss, data.process, 0.1)
    three = guided(data.x_t, data.t)
    assert (loss(three) < loss(data.denoise(data.x_t, data.t))).all()
    torch.testing.assert_close(guided(data.x_t[:1], data.t[:1]), three[:1])


def test_descent_is_steepest_descent_with_the_best_step_of_each_image() -> None:
    """Of a quadratic loss: the closed form; where nothing is left to descend it stays."""
    g = torch.Generator().manual_seed(0)
    x0, curvatures = torch.randn(3, 1, 2, 3, generator=g), torch.rand(3, 1, 2, 3, generator=g) + torch.tensor([0.5, 2, 50]).view(3, 1, 1, 1)
    x0[1] = 0

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (curvatures * x.square()).sum(dim=(1, 2, 3)) / 2

    grad = curvatures * x0
    length = grad.square().sum(dim=(1, 2, 3)) / (curvatures * grad.square()).sum(dim=(1, 2, 3)).clamp(min=1e-9)
    torch.testing.assert_close(descend(x0, loss, 1), x0 - length.view(-1, 1, 1, 1) * grad)
    assert (loss(descend(x0, loss, 9))[[0, 2]] < 1e-3 * loss(x0)[[0, 2]]).all()
    assert torch.equal(descend(x0, loss, 9)[1], x0[1])


def test_guidance_stacks() -> None:
    """The order does not matter for linear denoisers: an inner gradient moves x0 and is constant to the outer one."""
    data = Gaussian(300)
    pull = data.loss(torch.eye(2, dtype=torch.float64))

    def log_prob(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -x.square().sum(dim=(1, 2, 3)) / 2

    with torch.no_grad():
        plain = data.denoise(data.x_t, data.t)
        alone = image(data.denoise, pull, data.process, 0.2)(data.x_t, data.t)
        both = image(classifier(data.denoise, log_prob, data.process, 0.3), pull, data.process, 0.2)(data.x_t, data.t)
        twice = image(image(data.denoise, pull, data.process, 0.2), pull, data.process, 0.2)(data.x_t, data.t)
    pushed = plain - 0.3 * data.sigma**2 / data.alpha * data.x_t
    slope = (pushed - plain).flatten(1) @ data.view.T @ data.view @ data.gain  # how the pull changes where x0 was pushed to
    expected = alone + pushed - plain - 0.2 * data.sigma**2 / data.alpha * slope.view(plain.shape)
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=1e-5)
    slope = (alone - plain).flatten(1) @ data.view.T @ data.view @ data.gain
    expected = 2 * alone - plain - 0.2 * data.sigma**2 / data.alpha * slope.view(plain.shape)
    torch.testing.assert_close(twice, expected, rtol=1e-5, atol=1e-5)


def test_scale_zero_is_the_denoiser_itself_and_pure_noise_is_not_guided() -> None:
    data = Gaussian(300)
    loss = data.loss(torch.eye(2, dtype=torch.float64))
    assert image(data.denoise, loss, data.process, 0.0) == data.denoise
    assert classifier(data.denoise, lambda x, t: loss(x), data.process, 0.0) == data.denoise
    zero = Process(ProcessConfig(prediction="v", zero_terminal_snr=True))
    t = torch.full((3,), 999)
    torch.testing.assert_close(image(data.denoise, loss, zero, 1.0)(data.x_t, t), data.denoise(data.x_t, t))


def test_known_pixels_replace_what_the_network_sees_and_what_it_says() -> None:
    process, g = Process(ProcessConfig()), torch.Generator().manual_seed(0)
    x_t, known, noise = (torch.randn(3, 2, 4, 4, generator=g) for _ in range(3))
    mask, t = torch.zeros(3, 1, 4, 4, dtype=torch.bool), torch.tensor([3, 400, 700])
    mask[:, :, :, 2:] = True
    seen = []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x + 1

    x0 = known_pixels(denoise, known, mask, process, lambda x: noise)(x_t, t)
    assert torch.equal(seen[0][..., 2:], x_t[..., 2:])
    torch.testing.assert_close(seen[0][..., :2], process.add_noise(known, noise, t)[..., :2])
    assert torch.equal(x0[..., :2], known[..., :2])
    assert torch.equal(x0[..., 2:], x_t[..., 2:] + 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_pixels_end_in_the_known_latent_and_do_not_depend_on_the_batch(name: str) -> None:
    process, seeds = Process(ProcessConfig()), [4, 5, 6]
    known = randn_like_per_image("known", seeds)(torch.empty(3, 2, 4, 4))
    mask = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 1:3, 1:3] = True

    def sample(rows: slice) -> torch.Tensor:
        own = seeds[rows]
        start, fresh, ancestral = (randn_like_per_image(purpose, own) for purpose in ("start", "known pixels", "ancestral"))
        denoise = known_pixels(lambda x, t: 0.5 * x.roll(1, -1), known[rows], mask[rows], process, fresh)
        x = start(torch.empty(len(own), 2, 4, 4))
        return list(SAMPLERS[name](denoise, x, process, process.timesteps(9, "trailing"), ancestral))[-1].x

    whole = sample(slice(0, 3))
    torch.testing.assert_close(whole.where(~mask, 0), known.where(~mask, 0), rtol=0, atol=1e-5)
    torch.testing.assert_close(sample(slice(1, 2)), whole[1:2], rtol=0, atol=1e-5)


def test_mistakes_of_gradients_are_named() -> None:
    data = Gaussian(300)

    def log_prob(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=(1, 2, 3))

    for scale in (float("inf"), float("nan"), -1.0):
        with pytest.raises(ValueError, match=f"image guidance scale: {scale} is not possible: use 0"):
            image(data.denoise, lambda x0: x0.sum(dim=(1, 2, 3)), data.process, scale)
        with pytest.raises(ValueError, match=f"classifier guidance scale: {scale} is not possible: use 0"):
            classifier(data.denoise, log_prob, data.process, scale)
    with pytest.raises(ValueError, match=r"loss_of_x0: it gave shape \(\) for 3 images: give one value an image, shape \(3,\)"):
        image(data.denoise, lambda x0: x0.mean(), data.process, 1.0)(data.x_t, data.t)
    with pytest.raises(ValueError, match=r"log_prob: it gave shape \(3, 1\)"):
        classifier(data.denoise, lambda x, t: log_prob(x, t)[:, None], data.process, 1.0)(data.x_t, data.t)
    broken = torch.tensor([1.0, torch.inf, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"image guidance: the gradient of image 1 at t = 300 is not finite: use a scale below 2\.0"):
        image(data.denoise, lambda x0: broken * x0.sum(dim=(1, 2, 3)), data.process, 2.0)(data.x_t, data.t)
    hole = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"known pixels: known is \(1, 1, 2, 3\), mask \(1, 1, 2, 3\), x_t \(3, 1, 2, 3\): give"):
        known_pixels(data.denoise, data.x_t[:1], hole, data.process, torch.randn_like)(data.x_t, data.t)
