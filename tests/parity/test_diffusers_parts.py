"""Single models of diffusers and ours give the same outputs, whichever was there first; its own key maps agree with ours."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel

from latentworks.checkpoints.diffusers import load_diffusers
from latentworks.checkpoints.diffusers_save import save_diffusers
from latentworks.conditioners import FeaturesConditioner, FeaturesConfig, LabelConditioner, LabelConfig, LowResConditioner, LowResConfig
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import IdentityConfig, KLConfig, VQConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.types import Cond
from latentworks.unet import UNet, UNetConfig

IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
LATENT = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
T = torch.tensor([3, 801])


@torch.no_grad()
def randomise(model, seed=0):
    """Every weight, those that start as zero or one too, so that none is compared in vain."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 1.0 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale * 0.5 + (parameter.ndim < 2) * 0.3)
    return model.eval()


def same(one, other):
    """Equal within 1e-6 of the largest value, in float32: the same network in the same library."""
    assert (one - other).abs().max() <= 1e-6 * other.abs().max().clamp(min=1)


def agree(theirs, ours):
    """Within rounding of one network in two libraries, which multiply in another order."""
    assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max().clamp(min=1)


SMALL = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3, "groups": 8}
FIRST_STAGES = {
    "kl": KLConfig(**SMALL),
    "kl-attention": KLConfig(**SMALL, attention=(2,)),
    "kl-without-attention": KLConfig(**SMALL | {"multipliers": (1, 2, 2), "blocks": 2}, mid_attention="none"),
    "vq": VQConfig(**SMALL, codes=32),
    "vq-embedding": VQConfig(**SMALL | {"multipliers": (1,)}, embed_channels=2, codes=32, attention=(1,), mid_attention="none"),
}


@pytest.mark.parametrize("statistics", ["none", "scale", "means"])
@pytest.mark.parametrize("name", FIRST_STAGES)
@torch.no_grad()
def test_first_stage(name, statistics, tmp_path):
    ours = randomise(build_first_stage(FIRST_STAGES[name]))
    if statistics != "none":
        mean = torch.linspace(-1, 2, ours.channels) if statistics == "means" else torch.zeros(ours.channels)
        ours.set_statistics(mean, torch.tensor(1.7))
    save_diffusers(ours, tmp_path / "first", size=16)
    theirs = (AutoencoderKL if name.startswith("kl") else VQModel).from_pretrained(tmp_path / "first")
    again = load_diffusers(tmp_path / "first")
    assert again.normalised == (statistics != "none")
    scale = theirs.config.scaling_factor
    if statistics == "none":
        assert scale is None
        raw = theirs.encode(IMAGE).latent_dist.parameters if name.startswith("kl") else theirs.encode(IMAGE).latents
        agree(raw, ours.encode_raw(IMAGE))
        same(again.encode_raw(IMAGE), ours.encode_raw(IMAGE))
        return
    z = ours.to_latent(ours.encode_raw(IMAGE))
    encoded = theirs.encode(IMAGE).latent_dist.mean if name.startswith("kl") else theirs.encode(IMAGE).latents
    agree(encoded * scale, z)
    same(again.to_latent(again.encode_raw(IMAGE)), z)
    z = z + 0.1 * torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    agree(theirs.decode(z / scale).sample, ours.decode(z))
    same(again.decode(z), ours.decode(z))
    noise = torch.randn(z.shape)
    same(again.to_latent(again.encode_raw(IMAGE), lambda _: noise), ours.to_latent(ours.encode_raw(IMAGE), lambda _: noise))


UNETS = {
    "plain": ({"head_channels": 8}, ()),
    "heads": ({"heads": 1, "blocks": 2}, ()),
    "scale-shift": ({"head_channels": 16, "scale_shift": True}, ()),
    "updown": ({"head_channels": 8, "resblock_updown": True, "attention": (2,)}, ()),
    "averaging": ({"head_channels": 8, "conv_resample": False}, ()),
    "joined": ({"head_channels": 8}, (LowResConditioner(LowResConfig(channels=3)),)),
    "class": ({"head_channels": 8}, (LabelConditioner(LabelConfig(classes=5, width=64, route="vector")),)),
    "context": ({"heads": 2}, (FeaturesConditioner(FeaturesConfig(width=12)),)),
    "context-widths": ({"head_channels": 8, "blocks": (1, 2, 1), "depth": 2}, (FeaturesConditioner(FeaturesConfig(width=12)),)),
    "context-updown": ({"heads": 4, "resblock_updown": True, "attention": ()}, (FeaturesConditioner(FeaturesConfig(width=12)),)),
}


def pixel_model(settings, conditioners, process=ProcessConfig()):
    config = UNetConfig(**{"channels": 16, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2, 4), "groups": 8} | settings)
    unet = randomise(UNet(config, 3, LatentDiffusion.sum_gives(conditioners)))
    return LatentDiffusion(build_first_stage(IdentityConfig()), unet, Process(process), conditioners).eval()


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unet(name, tmp_path):
    settings, conditioners = UNETS[name]
    ours = pixel_model(settings, conditioners, ProcessConfig(prediction="v", schedule="cosine"))
    batch = {"low_res": LATENT + 1, "label": torch.tensor([2, 4]), "text_features": torch.randn(2, 5, 12)}
    expected = ours.predict(LATENT, T, ours.condition(batch))
    save_diffusers(ours, tmp_path / "unet", size=8)
    again = load_diffusers(tmp_path / "unet")
    assert again.process.config.prediction == "v"
    same(again.predict(LATENT, T, again.condition(batch)), expected)
    x = torch.cat([LATENT, batch["low_res"]], dim=1) if name == "joined" else LATENT
    if name.startswith("context"):
        output = UNet2DConditionModel.from_pretrained(tmp_path / "unet")(x, T, batch["text_features"]).sample
    else:
        labels = batch["label"] if name == "class" else None
        output = UNet2DModel.from_pretrained(tmp_path / "unet")(x, T, class_labels=labels).sample
    agree(output, ours.unet(LATENT, T, ours.condition(batch)))


UNET_2D = {
    "block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "layers_per_block": 1, "norm_num_groups": 8,
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
}  # fmt: skip
CONDITION = {
    "block_out_channels": (16, 32), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": (1, 2), "cross_attention_dim": 12, "in_channels": 3,
    "out_channels": 3,
}  # fmt: skip
BUILT = {
    "unet": lambda: UNet2DModel(**UNET_2D),
    "unet-sines-first": lambda: UNet2DModel(**UNET_2D, flip_sin_to_cos=False, num_class_embeds=7),
    "unet-resnets": lambda: UNet2DModel(**UNET_2D | {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet", "upsample_type": "resnet", "in_channels": 6}),
    "condition": lambda: UNet2DConditionModel(**CONDITION, attention_head_dim=(2, 4)),
    "condition-linear": lambda: UNet2DConditionModel(**CONDITION, attention_head_dim=4, use_linear_projection=True),
    "kl": lambda: AutoencoderKL(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, use_quant_conv=False, shift_factor=0.4),
    "vq": lambda: VQModel(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), norm_num_groups=4,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), num_vq_embeddings=16, vq_embed_dim=2),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@torch.no_grad()
def test_from_diffusers_and_back(name, pickled, tmp_path):
    """Their class, with their own defaults, through ours and back: the same outputs at each station."""
    theirs = randomise(BUILT[name]())
    theirs.save_pretrained(tmp_path / "theirs", safe_serialization=not pickled)
    ours = load_diffusers(tmp_path / "theirs")
    save_diffusers(ours, tmp_path / "back", size=16)
    back = type(theirs).from_pretrained(tmp_path / "back")
    if name in ("kl", "vq"):
        encoded = [model.encode(IMAGE).latent_dist.mean if name == "kl" else model.encode(IMAGE).latents for model in (theirs, back)]
        scaled = [(encoded[0] - (0.4 if name == "kl" else 0)) * 0.18215, encoded[1] * back.config.scaling_factor]
        for one in scaled:
            agree(one, ours.to_latent(ours.encode_raw(IMAGE)))
        agree(theirs.decode(encoded[0]).sample, ours.decode(scaled[0]))
        agree(back.decode(encoded[1]).sample, ours.decode(scaled[0]))
        same(*scaled)
        if name == "vq":  # a shift is folded into the weights
            same(back.decode(encoded[1]).sample, theirs.decode(encoded[0]).sample)
        return
    given = {"label": torch.tensor([1, 5]), "text_features": torch.randn(2, 5, 12), "low_res": LATENT + 1}
    x = torch.cat([LATENT, given["low_res"]], dim=1) if theirs.config.in_channels == 6 else LATENT
    if name.startswith("condition"):
        outputs = [model(x, T, given["text_features"]).sample for model in (theirs, back)]
    else:
        outputs = [model(x, T, class_labels=given["label"] if theirs.config.num_class_embeds else None).sample for model in (theirs, back)]
    same(*outputs)
    for output in outputs:
        agree(ours.unet(LATENT, T, ours.condition(given)), output[:, :3])


def test_a_unet_alone_has_the_default_process_or_that_of_its_scheduler(tmp_path):
    UNet2DModel(**UNET_2D).save_pretrained(tmp_path)
    assert load_diffusers(tmp_path).process.config == ProcessConfig()
    (tmp_path / "scheduler").mkdir()
    scheduler = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.001, "prediction_type": "sample"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    config = load_diffusers(tmp_path).process.config
    assert (config.schedule, config.beta_start, config.beta_end, config.prediction) == ("scaled_linear", 0.001, 0.02, "x0")


def test_condition_of_a_unet_alone_is_checked(tmp_path):
    UNet2DConditionModel(**CONDITION).save_pretrained(tmp_path)
    ours = load_diffusers(tmp_path)
    with pytest.raises(ValueError, match="text_features: this model takes embeddings"):
        ours.condition({})
    with pytest.raises(ValueError, match="context: this UNet was built for a condition 12 wide"):
        ours.predict(LATENT, T, Cond())
