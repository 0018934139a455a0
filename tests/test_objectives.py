"""The objectives: which loss reaches which weights, every weighting in closed form, and what is refused, restarted or left alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentworks.conditioners import LabelConditioner, LabelConfig, TextConditioner, TextConfig
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import IdentityConfig, KLAutoencoder, KLConfig, VQAutoencoder, VQConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.nn.discriminator import Discriminator, DiscriminatorConfig
from latentworks.objectives.alignment import AlignmentObjective
from latentworks.objectives.diffusion import DiffusionObjective, DiffusionObjectiveConfig
from latentworks.objectives.equivariance import Change, draw_change
from latentworks.objectives.first_stage import FirstStageObjective, FirstStageObjectiveConfig
from latentworks.unet import UNet, UNetConfig

SIZES = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 2, "groups": 2}
PARTS = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv."), "codebook": ("quantizer.",)}
ALL_TERMS = {"perceptual_weight": 0.7, "regulariser_weight": 0.3, "adversarial_weight": 0.5}


class Edges(nn.Module):
    """Stands in for a perceptual network."""

    def forward(self, x, y):
        return (x - y).diff(dim=3).square().mean((1, 2, 3))


def images(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"index": torch.arange(n), "image": torch.rand(n, 3, 16, 16, generator=generator) * 2 - 1}


def first_stage_objective(kind="kl", *, beta=0.25, steps=10, **changes):
    """The same weights each time; no term but L1 unless asked for."""
    torch.manual_seed(0)
    model = KLAutoencoder(KLConfig(**SIZES)) if kind == "kl" else VQAutoencoder(VQConfig(**SIZES, codes=16, beta=beta))
    off = {"perceptual_weight": 0.0, "regulariser_weight": 0.0, "adversarial_weight": 0.0, "discriminator_start": 0.0}
    config = FirstStageObjectiveConfig.parse({**off, "reduction": "sum" if kind == "kl" else "mean", **changes})
    return FirstStageObjective(config, model, Edges(), Discriminator(DiscriminatorConfig(channels=8, layers=1)), steps=steps)


def gradients(module):
    """Of every weight, zeros where there is none."""
    return {key: torch.zeros_like(p) if p.grad is None else p.grad.clone() for key, p in module.named_parameters()}


def of_autoencoder(kind, **changes):
    """Gradients of the autoencoder's loss, one vector a part."""
    objective = first_stage_objective(kind, **changes)
    next(objective.losses(images(), 0)).value.backward()
    found = gradients(objective.first_stage)
    grouped = {part: [v.flatten() for k, v in found.items() if k.startswith(starts)] for part, starts in PARTS.items()}
    return {part: torch.cat(vectors) for part, vectors in grouped.items() if vectors}


def reached(with_term, without):
    return {part for part in with_term if not torch.allclose(with_term[part], without[part], rtol=1e-5, atol=1e-7)}


@pytest.mark.parametrize(
    ("kind", "term", "parts"),
    [
        ("kl", {"perceptual_weight": 1.0}, {"encoder", "decoder"}),
        ("kl", {"regulariser_weight": 1.0}, {"encoder"}),
        ("kl", {"adversarial_weight": 1.0}, {"encoder", "decoder"}),
        ("vq", {"perceptual_weight": 1.0}, {"encoder", "decoder"}),
        ("vq", {"regulariser_weight": 1.0, "beta": 0.0}, {"codebook"}),
        ("vq", {"adversarial_weight": 1.0}, {"encoder", "decoder"}),
    ],
)
def test_each_term_reaches_its_weights_and_no_others(kind, term, parts):
    assert reached(of_autoencoder(kind, **term), of_autoencoder(kind)) == parts


def test_commitment_reaches_the_encoder_only():
    one, two = (of_autoencoder("vq", regulariser_weight=1.0, beta=beta) for beta in (1.0, 2.0))
    assert reached(one, two) == {"encoder"}


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_l1_reaches_encoder_and_decoder_and_passes_the_codebook_by(kind):
    found = of_autoencoder(kind)
    assert all(float(found[part].norm()) > 0 for part in ("encoder", "decoder"))
    assert kind == "kl" or not found["codebook"].any()


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_all_terms_together_are_their_weighted_sum(kind):
    """Value and gradients of Eq. 25 written out, with the adaptive weight of its definition and one plain backward pass."""
    objective = first_stage_objective(kind, **ALL_TERMS)
    loss = next(objective.losses(images(), 0))
    loss.value.backward()
    plain, x = first_stage_objective(kind, **ALL_TERMS), images()["image"]
    image, regulariser, _ = plain.first_stage(x, plain.noise("posterior", 0, images()))
    each = (image - x).abs() + 0.7 * Edges()(image, x).view(-1, 1, 1, 1)
    nll = each.sum() / len(x) if kind == "kl" else each.mean()
    adversarial = -plain.discriminator(image).mean()
    layer = plain.first_stage.decoder.conv_out.weight
    norms = [torch.autograd.grad(term, layer, retain_graph=True)[0].norm() for term in (nll, adversarial)]
    weight = 0.5 * norms[0] / (norms[1] + 1e-4)
    total = nll + 0.3 * regulariser + weight.detach() * adversarial
    total.backward()
    torch.testing.assert_close(loss.value, total)
    torch.testing.assert_close(loss.log["adversarial_weight"], weight.detach())
    ours, expected = (torch.cat([g.flatten() for g in gradients(o.first_stage).values()]) for o in (objective, plain))
    assert (ours - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("second_forward", [False, True])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_each_player_leaves_the_other_alone(kind, second_forward):
    objective = first_stage_objective(kind, second_forward=second_forward, **ALL_TERMS)
    losses = objective.losses(images(), 0)
    loss = next(losses)
    loss.value.backward()
    assert loss.trains == ("first_stage",)
    assert all(p.grad is None and p.requires_grad for p in objective.discriminator.parameters())
    objective.first_stage.zero_grad()
    loss = next(losses)
    loss.value.backward()
    assert loss.trains == ("discriminator",)
    assert all(p.grad is None for p in objective.first_stage.parameters())
    assert all(p.grad.any() for p in objective.discriminator.parameters() if p.dim() == 4)  # a bias may be lost in the norm behind it
    assert next(losses, None) is None


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_discriminators_loss_is_its_formula(kind):
    objective = first_stage_objective(**ALL_TERMS, adversarial_loss=kind)
    x = images()["image"]
    _, loss = objective.losses(images(), 0)
    real, fake = (objective.discriminator(y) for y in (x, objective.first_stage(x, objective.noise("posterior", 0, images())).image))
    if kind == "hinge":
        expected = ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()) / 2
    else:
        logits, truth = torch.cat([real, fake]), torch.cat([torch.ones_like(real), torch.zeros_like(fake)])
        expected = F.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(loss.value, expected)


def test_the_discriminator_starts_when_it_should():
    objective = first_stage_objective(steps=100, adversarial_weight=0.5, discriminator_start=0.5, discriminator_warmup=0.02)
    seen = {step: [loss.log.keys() for loss in objective.losses(images(), step)] for step in (0, 47, 48, 49, 50, 99)}
    assert {step: len(logs) for step, logs in seen.items()} == {0: 1, 47: 1, 48: 2, 49: 2, 50: 2, 99: 2}
    assert [step for step, logs in seen.items() if "adversarial" in logs[0]] == [50, 99]


@pytest.mark.parametrize("start", [1.0, 1.5, -0.1])
def test_a_discriminator_that_could_never_start_is_refused(start):
    with pytest.raises(ValueError, match=f"discriminator_start = {start} .* use e.g. 0.5, or adversarial_weight = 0"):
        first_stage_objective(adversarial_weight=0.5, discriminator_start=start)
    assert list(first_stage_objective(adversarial_weight=0.0, discriminator_start=start).modules) == ["first_stage"]


def test_dead_codes_restart_from_the_batchs_encodings():
    found = []
    for _ in range(2):
        objective = first_stage_objective("vq", restart_dead_after=3)
        model, batch = objective.first_stage.train(), images()
        model.quantizer.codebook.data[5] = 100.0  # the nearest of nothing
        before = model.quantizer.codebook.detach().clone()
        for step in range(3):
            list(objective.losses(batch, step))
            used = model.quantizer.counts > 0
            objective.after_step(step, batch)
            assert torch.equal(model.quantizer.codebook, before) == (step < 2), "only every third step"
        after = model.quantizer.codebook.detach()
        assert not used[5]
        assert used.any()
        assert torch.equal(after[used], before[used])
        with torch.no_grad():
            encodings = model.encode_raw(batch["image"]).permute(0, 2, 3, 1).reshape(-1, 2)
        assert all((encodings == code).all(dim=1).any() for code in after[~used])
        assert not model.quantizer.counts.any(), "counted afresh"
        found.append(after)
    assert torch.equal(*found)


def test_quantisation_may_begin_later_on_what_the_encoder_has_learnt():
    objective = first_stage_objective("vq", steps=10, quantise_from=0.3)
    model, batch = objective.first_stage.train(), images()
    for step in range(4):
        before = model.quantizer.codebook.detach().clone()
        (loss,) = objective.losses(batch, step)
        loss.value.backward()
        moved = objective.after_step(step, batch)
        plain = model.decoder(model.post_quant_conv(model.encode_raw(batch["image"]))).detach()
        assert (float(loss.log["l1"]) == pytest.approx(float((plain - batch["image"]).abs().mean()), abs=1e-6)) == (step < 3)
        assert (float(loss.log["regulariser"]) == 0) == (step < 3)
        assert model.quantizer.codebook.grad is not None, "DDP wants a gradient for every weight, be it zero"
        placed = step == 2
        assert torch.equal(model.quantizer.codebook, before) != placed
        assert (moved.rows is not None and len(moved.rows) == 16) == placed
        model.zero_grad(set_to_none=True)
    with torch.no_grad():
        encodings = model.encode_raw(batch["image"]).permute(0, 2, 3, 1).reshape(-1, 2)
    assert all((encodings == code).all(dim=1).any() for code in model.quantizer.codebook.detach())


def diffusion_objective(prediction="eps", conditioned=False, conditioners=(), **config):
    torch.manual_seed(0)
    conditioners = [LabelConditioner(LabelConfig(classes=3, width=16))] if conditioned else list(conditioners)
    first_stage = build_first_stage(IdentityConfig(in_channels=3))
    sizes = UNetConfig(channels=16, multipliers=(1,), blocks=1, attention=(1,), heads=2, head_channels=None)
    unet = UNet(sizes, first_stage.channels, LatentDiffusion.sum_gives(conditioners))
    for parameter in unet.parameters():  # blocks start as identities, through which nothing would be learned yet
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    model = LatentDiffusion(first_stage, unet, Process(ProcessConfig(prediction=prediction)), conditioners)
    return DiffusionObjective(DiffusionObjectiveConfig(**config), model)


def latents(n=6):
    generator = torch.Generator().manual_seed(1)
    return {"index": torch.arange(n), "latent": torch.randn(n, 3, 8, 8, generator=generator), "label": torch.arange(n) % 3}


def each_and_total(objective):
    """Unweighted losses of six steps, what is minimised, and the steps."""
    t = torch.tensor([0, 1, 20, 200, 600, 999])
    noise = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    each, total = objective.loss(latents()["latent"], noise, t, latents())
    return each.detach(), total, t


def test_the_diffusion_loss_reaches_network_and_conditioner_alike():
    objective = diffusion_objective(conditioned=True)
    loss = next(objective.losses(latents(), 0))
    loss.value.backward()
    assert loss.trains == ("model",)
    found = gradients(objective.model)
    assert {key.split(".")[0] for key in found} == {"unet", "conditioners"}, "the identity first stage has no weights"
    idle = [key for key, value in found.items() if not value.any()]
    assert all("blocks.0.norm2" in key or "cross_attention.q" in key or "cross_attention.k" in key for key in idle), "one token: no choice"
    assert len(found) - len(idle) > 50


def aligned_text():
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 1, "heads": 2, "head_channels": 8, "length": 4, "vocabulary": 20}
    text = TextConditioner(TextConfig(**sizes, vector=64, aligned=2, channels=3))
    return text, {**latents(), "tokens": torch.randint(1, 20, (6, 4))}


def test_aligned_text_stays_as_it_is_while_the_net_learns_to_draw_from_it():
    text, batch = aligned_text()
    objective = diffusion_objective(conditioners=[text])
    next(objective.losses(batch, 0)).value.backward()
    found = gradients(objective.model)
    assert {key.split(".")[2] for key, value in found.items() if key.startswith("conditioners") and value.any()} == {"spread"}
    assert any(value.any() for key, value in found.items() if key.startswith("unet"))


def test_alignment_teaches_the_text_alone_by_its_contrast():
    text, batch = aligned_text()
    model = diffusion_objective(conditioners=[text]).model
    objective = AlignmentObjective(model)
    loss = next(objective.losses(batch, 0))
    found = text.contrast(batch, batch["latent"], lambda x: x)
    torch.testing.assert_close(loss.value, found.loss)
    assert loss.log.keys() == {"loss", "caption_accuracy"}
    held_out = objective.held_out([batch, batch])
    assert held_out == {"loss": pytest.approx(float(found.loss)), "caption_accuracy": pytest.approx(float(found.accuracy))}
    loss.value.backward()
    learns = {key.removeprefix("conditioners.0.").split(".")[0] for key, value in gradients(model).items() if value.any()}
    assert learns == {"transformer", "summary", "tower"}, "what makes tokens of it is the net's"


def test_the_first_stage_is_not_trained_by_the_diffusion_loss():
    first_stage = KLAutoencoder(KLConfig(**SIZES))
    first_stage.set_statistics(torch.zeros(2), torch.tensor(1.0))
    unet = UNet(UNetConfig(channels=16, multipliers=(1,), blocks=1, attention=(), head_channels=16), 2, LatentDiffusion.sum_gives([]))
    model = LatentDiffusion(first_stage, unet, Process(ProcessConfig()))
    next(DiffusionObjective(DiffusionObjectiveConfig(), model).losses(images(), 0)).value.backward()
    assert all(p.grad is None and not p.requires_grad for p in first_stage.parameters())


@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_the_plain_loss_is_the_mean_error_of_the_target(loss):
    objective = diffusion_objective("v", loss=loss)
    each, total, t = each_and_total(objective)
    process, z0 = objective.model.process, latents()["latent"]
    noise = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    alpha, sigma = process.at(t)
    error = objective.model.unet(alpha * z0 + sigma * noise, t, objective.model.condition({})) - (alpha * noise - sigma * z0)
    expected = (error.square() if loss == "l2" else error.abs()).mean((1, 2, 3))
    torch.testing.assert_close(each, expected.detach())
    torch.testing.assert_close(total, expected.mean())


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr(prediction):
    objective = diffusion_objective(prediction, min_snr=5.0)
    each, total, t = each_and_total(objective)
    alpha, sigma = (x.flatten().double() for x in objective.model.process.at(t))
    snr = (alpha / sigma) ** 2
    weights = snr.clamp(max=5.0) / {"eps": snr, "x0": 1.0, "v": snr + 1}[prediction]  # Section 3.4, arXiv:2303.09556
    torch.testing.assert_close(total, (weights * each).mean().float(), rtol=1e-4, atol=1e-7)


def test_elbo_weight():
    objective = diffusion_objective(elbo_weight=0.001)
    each, total, t = each_and_total(objective)
    abar = objective.model.process.alpha[:-1] ** 2
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    beta = 1 - abar / before
    weights = beta**2 / (2 * (beta * (1 - before) / (1 - abar)) * (1 - beta) * (1 - abar))  # Eq. 12, arXiv:2006.11239
    weights[0] = weights[1]  # infinite, and replaced as in the authors' code
    torch.testing.assert_close(total, (each.mean() + 0.001 * (weights[t] * each).mean()).float(), rtol=1e-4, atol=1e-7)


def test_learned_log_variance():
    objective = diffusion_objective(learn_variance=True)
    values = objective.log_variance.value
    each, total, t = each_and_total(objective)
    torch.testing.assert_close(total, each.mean())
    values.data[t] = torch.linspace(-1, 1, 6)
    each, total, _ = each_and_total(objective)
    torch.testing.assert_close(total, (each / values[t].exp() + values[t]).mean())
    total.backward()
    torch.testing.assert_close(values.grad[t], ((1 - each / values[t].exp()) / 6).detach())
    assert values.grad.count_nonzero() == 6
    assert next(objective.losses(latents(), 0)).trains == ("model", "log_variance")


@pytest.mark.parametrize("kind", ["kl", "vq", "diffusion"])
def test_held_out_is_a_function_of_weights_and_data(kind):
    if kind == "diffusion":
        objective, batch = diffusion_objective(conditioned=True), latents()
    else:
        objective, batch = first_stage_objective(kind, **ALL_TERMS), images(6)
    for module in objective.modules.values():
        module.eval()
    state = {f"{name}.{k}": v.clone() for name, module in objective.modules.items() for k, v in module.state_dict().items()}
    random = torch.get_rng_state()
    first = objective.held_out([batch])
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(5)
    assert objective.held_out([batch]) == first
    parts = objective.held_out([{key: value[part] for key, value in batch.items()} for part in (slice(0, 2), slice(2, 6))])
    assert parts == pytest.approx(first, rel=1e-4), "whatever the batches are"
    after = {f"{name}.{k}": v for name, module in objective.modules.items() for k, v in module.state_dict().items()}
    torch.testing.assert_close(after, state, rtol=0, atol=0, equal_nan=True)
    assert all(p.grad is None for module in objective.modules.values() for p in module.parameters())
    assert objective.best in first


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_equivariance_compares_the_changed_latents_image_with_the_changed_image(kind, monkeypatch):
    change = Change(0.5, (-2,))
    monkeypatch.setattr("latentworks.objectives.first_stage.draw_change", lambda *key: change)
    objective, batch = first_stage_objective(kind, reduction="mean", equivariance=1.0), images()
    loss = next(objective.losses(batch, 0)).value
    stage = objective.first_stage
    stage.set_statistics(torch.zeros(2), torch.ones(()))
    latent = stage.to_latent(stage.encode_raw(batch["image"]), objective.noise("posterior", 0, batch))
    expected = F.interpolate(batch["image"], scale_factor=0.5, mode="bilinear", antialias=True).flip(-2)
    torch.testing.assert_close(loss, F.l1_loss(stage.decode(change(latent)), expected))


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_decoder_alone_learns_and_nothing_else(kind):
    found = of_autoencoder(kind, perceptual_weight=1.0, decoder_only=True)
    assert {part for part, gradient in found.items() if gradient.any()} == {"decoder"}


def test_latent_noise_is_between_none_and_so_many_deviations_for_each_image(monkeypatch):
    """The decoder sees z + share x noise x deviation: measured on what reaches it, for many steps."""
    objective, batch, shares = first_stage_objective(latent_noise=0.5), images(), []
    stage = objective.first_stage
    clean = stage.encode_raw(batch["image"])[:, :2]
    spread = (clean - clean.mean(dim=(0, 2, 3), keepdim=True)).square().mean().sqrt()
    monkeypatch.setattr(objective, "noise", lambda purpose, step, batch: torch.ones_like if purpose == "latent noise" else torch.zeros_like)
    stage.post_quant_conv.register_forward_pre_hook(lambda module, inputs: shares.append((inputs[0] - clean)[:, 0, 0, 0] / spread))
    for step in range(50):
        next(objective.losses(batch, step))
    seen = torch.cat(shares)
    assert 0 <= seen.min() < 0.05
    assert 0.45 < seen.max() <= 0.5
    assert len(seen.unique()) == len(seen)


def test_changes_are_drawn_as_often_as_asked_and_keep_sides_multiples():
    drawn = [draw_change(0.25, 0, step) for step in range(400)]
    changes = [change for change in drawn if change is not None]
    assert 70 < len(changes) < 130
    assert {change.flipped for change in changes} == {(), (-2,), (-1,), (-2, -1)}
    assert all(0.5 <= change.scale <= 1 for change in changes)
    image, latent = torch.zeros(1, 3, 24, 32), torch.zeros(1, 4, 6, 8)
    for change in changes:
        assert change(image, 4).shape[2:] == tuple(4 * side for side in change(latent).shape[2:])
    assert draw_change(0.0, 0, 1) is None
