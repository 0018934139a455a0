"""The authors' models through diffusers: its pipelines draw the reference images, and its own converter names the same weights alike."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file

from latentworks.checkpoints.compvis import load_compvis
from latentworks.checkpoints.diffusers import load_diffusers
from latentworks.checkpoints.diffusers_save import save_diffusers
from latentworks.checkpoints.tensors import read_tensors
from latentworks.conditioners import TextConditioner, TextConfig

SIDES = {"uncond-vq-f4": 32, "text-crossattn-kl-f8": 64, "superres-concat-vq-f4": 32}


class Tokens:
    """Stands for a tokenizer that gives the reference tokens, or all zeros for an empty prompt."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, texts, **_):
        return SimpleNamespace(input_ids=torch.zeros_like(self.tokens) if texts[0] == "" else self.tokens)


@pytest.mark.parametrize("name", SIDES)
@torch.no_grad()
def test_the_reference_images(name, golden, tmp_path, monkeypatch):
    io = load_file(golden / name / "io.safetensors")
    ours = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml")
    save_diffusers(ours, tmp_path / "out", size=SIDES[name])
    batch = {"tokens": io["cond_tokens"]} if "cond_tokens" in io else {"low_res": io["concat"]} if "concat" in io else {}
    again = load_diffusers(tmp_path / "out")
    cond = again.condition(batch)
    assert (again.unet(io["z_t"], io["t"], cond) - io["eps_ema"]).abs().max() <= 1e-4 * io["eps_ema"].abs().max()
    assert (again.encode(io["image"]) - io["z0"]).abs().max() <= 1e-4 * io["z0"].abs().max()
    tokens = {"tokenizer": Tokens(io["cond_tokens"])} if "cond_tokens" in io else {}
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "out", **tokens)
    theirs.set_progress_bar_config(disable=True)
    monkeypatch.setitem(type(theirs).__call__.__wrapped__.__globals__, "randn_tensor", lambda *_, **__: io["x_T"])
    given = {"prompt": ["a", "b"], "latents": io["x_T"]} if tokens else {"image": io["concat"]} if "concat" in io else {"batch_size": 2}
    image = torch.as_tensor(theirs(**given, num_inference_steps=10, output_type="np").images).permute(0, 3, 1, 2)
    expected = (io["ddim10_decoded"] / 2 + 0.5).clamp(0, 1)
    assert (image - expected).abs().max() <= 1e-3


@pytest.mark.parametrize("name", ["text-crossattn-kl-f8", "class-crossattn-vq-f4"])
def test_names_are_those_of_their_converter(name, golden, tmp_path):
    state = read_tensors(golden / name / "model.ckpt")
    ours = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml", ema=False)
    sizes = {"width": ours.unet.gives.context, "layers": 1, "heads": 1, "head_channels": 8, "vocabulary": 300}
    ours.conditioners = torch.nn.ModuleList([TextConditioner(TextConfig(**sizes))])  # classes have no pipeline; it is not compared
    save_diffusers(ours, tmp_path / "out", size=64)
    for part, convert in (("unet", convert_ldm_unet_checkpoint), ("vqvae", convert_ldm_vae_checkpoint)):
        config = json.loads((tmp_path / "out" / part / "config.json").read_text())
        expected = convert(dict(state), config)
        written = load_file(tmp_path / "out" / part / "diffusion_pytorch_model.safetensors")
        compared = {key for key in written if not key.startswith("quantize.")}
        assert compared == {key for key in expected if not key.startswith("quantize.")}
        for key in compared:
            assert torch.equal(written[key], expected[key].reshape(written[key].shape)), key
