"""Five training steps of the authors' code, step by step: every loss term, gradient norm, adaptive weight, movement and average.

Runs are driven by our own `train()` in float32; only the random draws are the recorded ones.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from latentworks.checkpoints.compvis import load_compvis, rename
from latentworks.first_stage import KLAutoencoder, KLConfig, VQAutoencoder, VQConfig
from latentworks.nn.discriminator import Discriminator, DiscriminatorConfig
from latentworks.objectives.base import Loss, Objective
from latentworks.objectives.diffusion import DiffusionObjective, DiffusionObjectiveConfig
from latentworks.objectives.first_stage import FirstStageObjective, FirstStageObjectiveConfig
from latentworks.train import State, TrainConfig, train
from latentworks.types import Batch

STEPS = 5


class Recorded:
    """Data whose step k is the recorded step k."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def indices_for(self, step: int, batch: int) -> list[int]:
        return list(range(batch))

    def batch(self, indices: list[int], step: int) -> Batch:
        fields = {key.split(".")[1]: value for key, value in self.tensors.items() if key.startswith(f"step{step}.")}
        return {"index": torch.tensor(indices), **fields}  # type: ignore[typeddict-item]


def relative(got: float, want: float) -> float:
    return abs(got - want) / max(abs(want), 1e-12)


def compare_norms(tensors: dict[str, Tensor], prefix: str, ours: dict[str, Tensor], tolerance: float) -> int:
    """Every recorded norm that is not lost in rounding: above 1e-6 of the largest gradient."""
    largest = max(float(v) for k, v in tensors.items() if k.startswith("grad_norm."))
    keys = [k.removeprefix(prefix) for k in tensors if k.startswith(prefix) and float(tensors[f"grad_norm.{k.removeprefix(prefix)}"]) > 1e-6 * largest]
    for key in keys:
        assert relative(float(ours[key]), float(tensors[prefix + key])) < tolerance, (prefix, key, float(ours[key]), float(tensors[prefix + key]))
    return len(keys)


class Watched(Objective):
    """Another objective, with gradients kept from step 0 (they are cleared after each optimiser step)."""

    def __init__(self, inner: Objective) -> None:
        self.inner, self.modules, self.averaged, self.best = inner, inner.modules, inner.averaged, inner.best
        self.gradients: dict[str, Tensor] = {}

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        for loss in self.inner.losses(batch, step):
            if step == 0:
                for name in loss.trains:
                    for key, parameter in self.modules[name].named_parameters():
                        if parameter.requires_grad:
                            parameter.register_post_accumulate_grad_hook(partial(self._keep, f"{name}.{key}"))
            yield loss

    def _keep(self, name: str, parameter: Tensor) -> None:
        self.gradients.setdefault(name, parameter.grad.detach().clone())

    def held_out(self, batches):
        return {}


def run(objective: Objective, data: Recorded, config: TrainConfig) -> tuple[list[dict[str, float]], State, dict[str, Tensor]]:
    logs = []
    watched = Watched(objective)
    for stepped in train(watched, data, config, accelerator=Accelerator(cpu=True, mixed_precision="no")):
        logs.append({key: float(value) for key, value in stepped.log.items()})
    return logs, stepped.state, watched.gradients


def our_first_stage_key(key: str) -> str:
    """ "first_stage.KEY" or "discriminator.KEY" for an authors' key."""
    if key.startswith("loss.discriminator."):
        return "discriminator." + key.removeprefix("loss.discriminator.")
    return rename("first_stage_model." + key)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_first_stage_gan(golden: Path, kind: str) -> None:
    folder = golden / "training"
    want, init = (load_file(folder / f"first-stage-{kind}-gan{part}.safetensors") for part in ("", ".init"))
    settings = yaml.safe_load((folder / f"first-stage-{kind}-gan.yaml").read_text())
    dd = settings["ddconfig"]
    common = {
        "in_channels": dd["in_channels"], "channels": dd["ch"], "multipliers": tuple(dd["ch_mult"]), "blocks": dd["num_res_blocks"],
        "latent_channels": dd["z_channels"],
    }  # fmt: skip
    model = KLAutoencoder(KLConfig(**common)) if kind == "kl" else VQAutoencoder(VQConfig(**common, codes=settings["n_embed"], legacy=True))
    discriminator = Discriminator(DiscriminatorConfig(norm="batch"))
    start = {our_first_stage_key(k): v for k, v in init.items() if k != "loss.logvar"}
    for name, module in (("first_stage", model), ("discriminator", discriminator)):
        missing = module.load_state_dict({k.removeprefix(name + "."): v for k, v in start.items() if k.startswith(name + ".")}, strict=False)
        assert not missing.unexpected_keys
        assert set(missing.missing_keys) <= {"mean", "std", "quantizer.counts"}
    objective = FirstStageObjective(
        FirstStageObjectiveConfig(
            reduction="sum" if kind == "kl" else "mean",
            perceptual_weight=0.0,
            regulariser_weight=1e-6 if kind == "kl" else 1.0,
            log_variance=float(init["loss.logvar"]) if kind == "kl" else 0.0,
            adversarial_weight=0.5 if kind == "kl" else 0.75,
            discriminator_start=0.0,
            second_forward=True,
        ),
        model, None, discriminator, steps=STEPS,
        noise=lambda purpose, step, batch: lambda x: batch["posterior_noise0" if purpose == "posterior" else "posterior_noise1"],
    )  # fmt: skip
    config = TrainConfig(steps=STEPS, batch=4, optimiser="adam", lr=1e-4, betas=(0.5, 0.9), clip=None, precision="float32")
    logs, state, gradients = run(objective, Recorded(want), config)
    terms = {
        "opt0.train/total_loss": "loss", "opt0.train/nll_loss": "nll", "opt0.train/rec_loss": "reconstruction", "opt0.train/g_loss": "adversarial",
        "opt0.train/kl_loss": "regulariser", "opt0.train/quant_loss": "regulariser", "opt1.train/disc_loss": "discriminator",
        "opt1.train/logits_real": "logits_real", "opt1.train/logits_fake": "logits_fake",
    }  # fmt: skip
    compared = 0
    for theirs, ours in terms.items():
        for step, value in enumerate(want.get(f"log.{theirs}", torch.empty(0)).tolist()):
            assert abs(logs[step][ours] - value) < 1e-5 * max(abs(value), 1.0), (theirs, step, logs[step][ours], value)
            compared += 1
    assert compared == 8 * STEPS
    for step, value in enumerate(want["log.opt0.train/d_weight"].tolist()):  # the authors log it before disc_weight is applied or after: both are one factor
        assert relative(logs[step]["adversarial_weight"], value) < 1e-4, (step, logs[step]["adversarial_weight"], value)
    grads = {k.removeprefix("grad_norm."): gradients[our_first_stage_key(k.removeprefix("grad_norm."))].norm() for k in want if k.startswith("grad_norm.")}
    assert compare_norms(want, "grad_norm.", grads, 1e-4) > 50
    now = {f"{name}.{k}": v for name, module in state.modules.items() for k, v in module.state_dict().items()}
    moved = {k.removeprefix("moved_norm."): (now[our_first_stage_key(k[11:])] - start[our_first_stage_key(k[11:])]).norm() for k in want if k.startswith("moved_norm.")}
    assert compare_norms(want, "moved_norm.", moved, 1e-3) > 50
    finals = [k.removeprefix("final.") for k in want if k.startswith("final.")]
    for key in finals:
        assert torch.allclose(now[our_first_stage_key(key)], want[f"final.{key}"], atol=1e-3 * float(want[f"final.{key}"].abs().max())), key
    assert len(finals) >= 3


class RecordedDraws(DiffusionObjective):
    """The diffusion objective fed with recorded latents, noise and steps."""

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        each, total = self.loss(batch["z0"], batch["noise"], batch["t"], batch)  # type: ignore[typeddict-item]
        yield Loss(total, ("model",), {"loss": total.detach()})


class GivenConcat(torch.nn.Module):
    """A network that gets its concatenated condition as recorded."""

    def __init__(self, model) -> None:
        super().__init__()
        self.unet, self.process = model.unet, model.process

    def forward(self, x_t, t, batch):
        from latentworks.types import Cond

        return self.unet(x_t, t, Cond(concat=batch["concat"]))


@pytest.mark.parametrize(("name", "loss"), [("uncond-vq-f4", "l2"), ("text-crossattn-kl-f8", "l2"), ("inpaint-concat-vq-f4", "l1")])
def test_latent_diffusion(golden: Path, name: str, loss: str) -> None:
    want = load_file(golden / "training" / f"ldm-{name}-{loss}.safetensors")
    model = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml", ema=False)
    objective = RecordedDraws(DiffusionObjectiveConfig(loss=loss), model)
    if name.startswith("inpaint"):
        objective.modules["model"] = GivenConcat(model)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    config = TrainConfig(steps=STEPS, batch=4, lr=1e-4, clip=None, ema=0.9999, precision="float32")
    logs, state, gradients = run(objective, Recorded(want), config)
    for step, value in enumerate(want["losses"].tolist()):
        assert relative(logs[step]["loss"], value) < 1e-5, (step, logs[step]["loss"], value)
    grads = {k: gradients["model." + rename(k)].norm() for k in (k.removeprefix("grad_norm.") for k in want if k.startswith("grad_norm."))}
    assert compare_norms(want, "grad_norm.", grads, 1e-4) > 50
    now = model.state_dict()
    moved = {k: (now[rename(k)] - start[rename(k)]).norm() for k in (k.removeprefix("moved_norm.") for k in want if k.startswith("moved_norm."))}
    assert compare_norms(want, "moved_norm.", moved, 1e-3) > 50
    finals = [k.removeprefix("final.") for k in want if k.startswith("final.")]
    assert len(finals) == 3
    with state.averaged():
        averaged = {k: v.clone() for k, v in model.state_dict().items()}
    for key in finals:
        for prefix, weights in (("final.", now), ("final_ema.", averaged)):
            expected = want[prefix + key]
            assert torch.allclose(weights[rename(key)], expected, atol=1e-3 * float(expected.abs().max())), prefix + key
