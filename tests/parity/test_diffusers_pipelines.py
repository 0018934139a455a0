"""Pipelines of diffusers draw what we draw from the same noise, with our models in its folders and its models in ours."""

import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)  # fmt: skip
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from test_diffusers_parts import agree, randomise, same
from transformers import CLIPTextConfig, CLIPTextModel

from latentworks.checkpoints.diffusers import load_diffusers, read_diffusers
from latentworks.checkpoints.diffusers_save import save_diffusers
from latentworks.checkpoints.vocabulary import clip_tokenizer
from latentworks.conditioners import (
    FrozenTextConditioner,
    FrozenTextConfig,
    LowResConditioner,
    LowResConfig,
    MaskedImageConditioner,
    MaskedImageConfig,
    TextConditioner,
    TextConfig,
    train_tokenizer,
)  # fmt: skip
from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.diffusion.samplers import ddim
from latentworks.first_stage import KLConfig, VQConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.unet import UNet, UNetConfig

SIZE = 32
TEXTS = ["a red fox", "a blue house with a door"]
FIRST = {"channels": 8, "blocks": 1, "latent_channels": 4, "groups": 4}
MEAN = torch.tensor([0.5, -0.5, 0.2, 0.1])


def tiny(first_stage, conditioners=(), prediction="eps", mean=MEAN, **unet):
    first_stage.set_statistics(mean, torch.tensor(1.3))
    config = UNetConfig(**{"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "heads": 2, "groups": 8} | unet)
    torch.manual_seed(0)
    network = UNet(config, first_stage.channels, LatentDiffusion.sum_gives(conditioners))
    torch.nn.init.normal_(network.conv_out.weight, std=0.05)  # else it says 0
    return LatentDiffusion(first_stage, network, Process(ProcessConfig(prediction=prediction)), conditioners).eval()


def first(kind, levels=3):
    torch.manual_seed(1)
    settings = FIRST | {"multipliers": (1, 2, 2, 2)[:levels]}
    model = build_first_stage(KLConfig(**settings) if kind == "kl" else VQConfig(**settings, codes=64))
    if kind == "vq":
        torch.nn.init.normal_(model.quantizer.codebook)
    return model.eval()


def joint(length=77):
    torch.manual_seed(2)
    sizes = {"width": 24, "layers": 2, "heads": 2, "head_channels": 8, "length": length, "vocabulary": 300}
    return TextConditioner(TextConfig(**sizes), train_tokenizer(TEXTS, 300))


def frozen(length=77, mask=False, projection=None):
    torch.manual_seed(3)
    tokenizer = clip_tokenizer([("r", "e"), ("re", "d</w>"), ("f", "o"), ("fo", "x</w>")])
    entries = tokenizer.get_vocab_size()
    ends = {"bos_token_id": entries - 2, "eos_token_id": entries - 1}
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=entries, max_position_embeddings=77, **sizes, **ends))
    config = FrozenTextConfig(encoder="tiny", length=length, mask=mask, projection=projection)
    return FrozenTextConditioner(config, getattr(encoder, "text_model", encoder), tokenizer)


@torch.no_grad()
def draw(model, x, batch=None, guidance=1.0, spacing="leading"):
    """Ten steps of ours, as an image in [0, 1]."""
    batch = batch or {}
    cond = model.condition(batch)
    if guidance == 1:
        denoise = lambda x_t, t: model.predict(x_t, t, cond)  # noqa: E731
    else:
        none = model.condition({**batch, "text": [""] * len(x)})
        denoise = classifier_free(model.predict, cond, none, guidance)
    *_, last = ddim(denoise, x, model.process, model.process.timesteps(10, spacing), torch.randn_like)
    return (model.first_stage.decode(last.x) / 2 + 0.5).clamp(0, 1)


def noise(model, n=2, seed=5):
    shape = (n, model.first_stage.channels, *[SIZE // model.first_stage.factor] * 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(theirs, ours):
    assert ours.std() > 0.01
    theirs = torch.as_tensor(theirs)
    theirs = theirs.permute(0, 3, 1, 2) if theirs.shape[-1] == 3 else theirs
    assert (theirs - ours).abs().max() <= 1e-3 * ours.abs().max()


def opened(model, folder, pipeline, spacing="leading"):
    """diffusers' pipeline, as its own loader chooses it, and our model read again."""
    save_diffusers(model, folder, size=SIZE, spacing=spacing)
    theirs = DiffusionPipeline.from_pretrained(folder)
    assert type(theirs) is pipeline
    theirs.set_progress_bar_config(disable=True)
    assert read_diffusers(folder).size == SIZE
    return theirs, load_diffusers(folder)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("kind", "prediction"), [("vq", "eps"), ("kl", "v")])
def test_unconditional(kind, prediction, spacing, tmp_path):
    ours = tiny(first(kind), prediction=prediction)
    theirs, again = opened(ours, tmp_path / "out", LDMPipeline, spacing)
    x = noise(ours)
    image = draw(ours, x, spacing=spacing)
    close(theirs(batch_size=2, generator=torch.Generator().manual_seed(5), num_inference_steps=10, output_type="np").images, image)
    close(draw(again, x, spacing=spacing), image)
    assert again.process.config == ours.process.config


@pytest.mark.parametrize("levels", [3, 4], ids=["f4", "f8"])
@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_text(kind, guidance, levels, tmp_path):
    """Also where f is not 8, which LDMTextToImagePipeline takes for granted."""
    ours = tiny(first(kind, levels), [joint()])
    theirs, again = opened(ours, tmp_path / "out", LDMTextToImagePipeline)
    assert isinstance(theirs.bert, LDMBertModel)
    x, batch = noise(ours), {"text": TEXTS}
    same(again.condition(batch).context, ours.condition(batch).context)
    image = draw(ours, x, batch, guidance)
    options = {"num_inference_steps": 10, "guidance_scale": guidance, "output_type": "pt"}
    close(theirs(TEXTS, **options, latents=x).images, image)
    close(theirs(TEXTS, **options, generator=torch.Generator().manual_seed(5)).images, image)  # of the size the folder names
    close(draw(again, x, batch, guidance), image)


def test_text_of_another_length(tmp_path):
    """LDMTextToImagePipeline's prompts have 77 tokens; StableDiffusionPipeline asks the tokenizer."""
    ours = tiny(first("kl"), [joint(24)])
    theirs, again = opened(ours, tmp_path / "out", StableDiffusionPipeline)
    x, batch = noise(ours), {"text": TEXTS}
    image = draw(ours, x, batch, 3.0)
    close(theirs(TEXTS, num_inference_steps=10, guidance_scale=3.0, latents=x, output_type="pt").images, image)
    close(draw(again, x, batch, 3.0), image)
    assert again.conditioners[0].config == ours.conditioners[0].config


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_super_resolution(kind, tmp_path):
    ours = tiny(first(kind), [LowResConditioner(LowResConfig(channels=4))])
    theirs, again = opened(ours, tmp_path / "out", LDMSuperResolutionPipeline)
    x, small = noise(ours), torch.rand(2, 4, 8, 8) * 2 - 1
    image = draw(ours, x, {"low_res": small})
    close(theirs(small, num_inference_steps=10, generator=torch.Generator().manual_seed(5), output_type="pt").images, image)
    close(draw(again, x, {"low_res": small}), image)


@pytest.mark.parametrize("settings", [{}, {"length": 20}, {"mask": True}, {"projection": 10}], ids=["sd", "length", "mask", "projection"])
def test_stable_diffusion(settings, tmp_path):
    ours = tiny(first("kl", 4), [frozen(**settings)], mean=torch.zeros(4))
    theirs, again = opened(ours, tmp_path / "out", StableDiffusionPipeline)
    assert theirs.vae.config.scaling_factor == pytest.approx(1 / 1.3)
    x, batch = noise(ours), {"text": TEXTS}
    same(again.condition(batch).context, ours.condition(batch).context)
    image = draw(ours, x, batch, 3.0)
    close(theirs(TEXTS, num_inference_steps=10, guidance_scale=3.0, latents=x, output_type="pt").images, image)
    close(draw(again, x, batch, 3.0), image)


def test_frozen_text_and_vq(tmp_path):
    ours = tiny(first("vq"), [frozen()])
    theirs, again = opened(ours, tmp_path / "out", LDMTextToImagePipeline)
    x, batch = noise(ours), {"text": TEXTS}
    image = draw(ours, x, batch, 3.0)
    close(theirs(TEXTS, num_inference_steps=10, guidance_scale=3.0, latents=x, output_type="pt").images, image)
    close(draw(again, x, batch, 3.0), image)


def test_inpainting(tmp_path):
    ours = tiny(first("kl", 4), [frozen(), MaskedImageConditioner(MaskedImageConfig(channels=4, convention="sd"))], mean=torch.zeros(4))
    with torch.no_grad():
        ours.first_stage.quant_conv.bias[4:] = -60  # their pipeline takes a sample of the masked image's posterior, we take the mode
        ours.first_stage.quant_conv.weight[4:] = 0
    theirs, again = opened(ours, tmp_path / "out", StableDiffusionInpaintPipeline)
    x, image = noise(ours), torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    mask = torch.zeros(2, 1, SIZE, SIZE)
    mask[:, :, 8:24, 8:] = 1
    batch = {"text": TEXTS, "image": image, "mask": mask}
    expected = draw(ours, x, batch, 3.0)
    options = {"num_inference_steps": 10, "guidance_scale": 3.0, "latents": x, "output_type": "pt", "strength": 1.0}
    close(theirs(TEXTS, image=image, mask_image=mask, height=SIZE, width=SIZE, **options).images, expected)
    close(draw(again, x, batch, 3.0), expected)


def test_a_pipeline_that_diffusers_wrote(tmp_path):
    """Its own save_pretrained, its own defaults where we write something: read, written and opened again."""
    save_diffusers(tiny(first("kl", 4), [frozen()], mean=torch.zeros(4)), tmp_path / "ours", size=SIZE)
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    theirs.scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
    randomise(theirs.unet)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_diffusers(str(tmp_path / "theirs"))
    assert ours.process.config.beta_end == 0.012
    x, t = noise(ours), torch.tensor([4, 700])
    context = ours.condition({"text": TEXTS}).context
    tokens = theirs.tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        agree(theirs.text_encoder(tokens)[0], context)
        agree(theirs.unet(x, t, context).sample, ours.unet(x, t, ours.condition({"text": TEXTS})))
    assert json.loads((tmp_path / "theirs" / "model_index.json").read_text())["safety_checker"] == [None, None]
