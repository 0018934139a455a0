"""Muon: which weights are moved as matrices, how far, and that a run of it resumes exactly."""

from itertools import islice

import pytest
import torch
from torch import nn

from latentworks.objectives.base import Loss, Objective
from latentworks.optimisers import _POLYNOMIALS, Muon, orthogonalised
from latentworks.train import TrainConfig, make_accelerator, train


@pytest.mark.parametrize("shape", [(20, 64), (64, 20), (32, 32), (20, 32)])
def test_a_step_has_singular_values_about_one_and_the_gradients_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonalised(matrix[None])[0]
    values = torch.linalg.svdvals(ours)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    assert float((ours - u @ v).norm()) < 0.3 * float((u @ v).norm())
    assert torch.equal(orthogonalised(torch.zeros(1, *shape)), torch.zeros(1, *shape))


@pytest.mark.parametrize("shape", [(24, 128), (200, 210), (200, 400)])
def test_the_iteration_on_the_gram_matrix_and_one_of_half_precision_change_little(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, shape[1])
    plain = matrix / matrix.norm()
    for a, b, c in _POLYNOMIALS:
        gram = plain @ plain.T
        plain = a * plain + (b * gram + c * gram @ gram) @ plain
    assert float((orthogonalised(matrix[None])[0] - plain).norm()) < 1e-3 * float(plain.norm())
    assert float((orthogonalised(matrix[None], torch.bfloat16)[0] - plain).norm()) < 0.1 * float(plain.norm())


@pytest.mark.parametrize("shape", [(24, 40), (200, 210), (200, 400)])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_gradient_of_few_directions_does_not_make_the_iteration_grow(shape, rank):
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape[0], rank, generator=random) @ torch.randn(rank, shape[1], generator=random)
    for noise in (0, 1e-3, 1e-2):
        noisy = matrix + noise * torch.randn(shape, generator=random)
        assert float(torch.linalg.svdvals(orthogonalised(noisy[None], torch.bfloat16).float()).max()) < 1.3


def test_layers_are_matrices_and_all_else_is_adamws():
    net = nn.Sequential(
        nn.Embedding(32, 32), nn.Conv1d(32, 32, 3), nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 4), nn.Linear(32, 32)
    )
    optimiser = Muon(net, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, dtype=torch.float32, fused=True)
    others, matrices = (group["params"] for group in optimiser.param_groups)
    assert [id(p) for p in matrices] == [id(net[1].weight), id(net[3].weight), id(net[5].weight)]
    assert len(others) == len(list(net.parameters())) - 3
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for index, p in enumerate(net.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
    optimiser.step()
    for name, p in net.named_parameters():
        moved = (p.detach() - before[name]).square().mean().sqrt()
        if id(p) in {id(other) for other in others}:  # Adam's first step is lr times the sign
            assert float(moved) == pytest.approx(0.1, rel=1e-3), name
        else:  # 0.2 lr: that of Adam's later ones
            assert float(moved) == pytest.approx(0.02, rel=0.25), name
            own = -orthogonalised(p.grad.flatten(1)[None])[0]
            assert torch.cosine_similarity((p.detach() - before[name]).flatten(), own.flatten(), dim=0) == pytest.approx(1), name


class Fit(Objective):
    """A layer that is to give back what it gets."""

    best = "loss"
    averaged = ("model",)

    def __init__(self):
        self.model = nn.Linear(16, 16)
        self.modules = {"model": self.model}

    def losses(self, batch, step):
        value = (self.modules["model"](batch["x"]) - batch["x"]).square().mean()
        yield Loss(value, ("model",), {"loss": value.detach()})

    def held_out(self, batches):
        return {}


class Noise:
    def indices_for(self, step, batch):
        return list(range(step * batch, (step + 1) * batch))

    def batch(self, indices, step):
        return {"x": torch.randn(len(indices), 16, generator=torch.Generator().manual_seed(step))}


def test_a_run_resumes_exactly_and_learns():
    config = TrainConfig(steps=40, optimiser="muon", lr=0.1, weight_decay=0.0, precision="float32")
    torch.manual_seed(0)
    first, second = Fit(), Fit()
    second.model.load_state_dict(first.model.state_dict())
    whole = list(train(first, Noise(), config, accelerator=make_accelerator(config)))
    assert float(whole[-1].log["loss"]) < 0.1 * float(whole[0].log["loss"])
    kept = whole[-1].state.tensors()
    half = next(islice(train(second, Noise(), config, accelerator=make_accelerator(config)), 19, None)).state.tensors()
    tensors = {key: value.clone() for key, value in half.items()}
    *_, last = train(Fit(), Noise(), config, accelerator=make_accelerator(config), resume=tensors)
    resumed = last.state.tensors()
    assert any(key.endswith("momentum") for key in kept)
    assert sorted(kept) == sorted(resumed)
    assert [key for key in kept if not torch.equal(kept[key], resumed[key])] == []
