"""Classifier-free guidance: equal to guiding eps, one doubled batch, no cost at scale 1, clear mistakes."""

import pytest
import torch

from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.process import Process, ProcessConfig
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
