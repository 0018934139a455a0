"""Stable Diffusion 1.x files in small: no YAML, their text encoder, their inpainting variant, and CLIP's vocabulary."""

import gzip
import json
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latentworks.checkpoints.compvis import load_compvis, read_compvis
from latentworks.checkpoints.compvis_save import save_compvis
from latentworks.checkpoints.vocabulary import clip_tokenizer, open_clip_vocabulary, read_tokenizer
from latentworks.conditioners import FrozenTextConditioner, MaskedImageConditioner
from latentworks.first_stage import KLConfig, build_first_stage
from latentworks.types import Gives
from latentworks.unet import UNet, UNetConfig

MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("r", "e"), ("re", "d</w>"), ("o", "f</w>")]


@pytest.fixture
def vocabulary(tmp_path):
    """A list of merges in the format of CLIP's: a line of comment, then one merge a line."""
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *map(" ".join, MERGES)]).encode()))
    return path


def sd_state(concat: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by the names of v1 files: 512 + 2 * 7 entries, 32 channels everywhere."""
    from latentworks.checkpoints.compvis_keys import authors_keys

    torch.manual_seed(0)
    unet = UNet(UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2, 1), heads=8), 4, Gives(concat=concat, context=32))
    first_stage = build_first_stage(KLConfig(channels=32, multipliers=(1, 1, 2, 2), blocks=1, latent_channels=4))
    text = CLIPTextModel(text_config())
    state = {f"first_stage_model.{theirs}": first_stage.state_dict()[ours] for ours, theirs in authors_keys(first_stage).items()}
    state |= {theirs: unet.state_dict()[ours] for ours, theirs in authors_keys(unet).items()}
    prefix = "cond_stage_model.transformer.text_model."
    state |= {prefix + key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    state[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    return {key: torch.randn_like(value) * 0.05 if value.is_floating_point() else value for key, value in state.items()}


def text_config() -> CLIPTextConfig:
    entries = 512 + len(MERGES) + 2
    sizes = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    return CLIPTextConfig(**sizes, vocab_size=entries, bos_token_id=entries - 2, eos_token_id=entries - 1, hidden_act="quick_gelu")


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_file_needs_no_yaml(tmp_path, vocabulary, suffix):
    state, path = sd_state(), tmp_path / f"v1.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state}, path)
    imported = read_compvis(path, tokenizer=vocabulary)
    model = imported.model
    assert imported.size == 512
    assert model.unet.config.heads == 8
    assert float(model.first_stage.std) == pytest.approx(1 / 0.18215)
    config = model.process.config
    assert (config.schedule, config.beta_start, config.beta_end, config.prediction) == ("scaled_linear", 0.00085, 0.012, "eps")
    text = CLIPTextModel(text_config()).eval()
    prefix = "cond_stage_model.transformer.text_model."
    values = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix) and "position_ids" not in key}
    nested = "text_model." if any(key.startswith("text_model.") for key in text.state_dict()) else ""
    text.load_state_dict({nested + key: value for key, value in values.items()})
    tokens = torch.tensor([read_tokenizer(vocabulary).encode("a red cat").ids])
    tokens = torch.nn.functional.pad(tokens, (0, 77 - tokens.shape[1]), value=text_config().eos_token_id)
    with torch.no_grad():
        expected = text(input_ids=tokens).last_hidden_state  # padding is attended to
        for batch in ({"text": ["a  Red cat"]}, {"tokens": tokens}):
            torch.testing.assert_close(model.condition(batch).context, expected)
        assert model.condition({"text": ["x"] * 2}, torch.tensor([True, False])).context.shape == (2, 77, 32)


def test_without_a_vocabulary_tokens_are_asked_for(tmp_path):
    save_file(sd_state(), tmp_path / "v1.safetensors")
    model = load_compvis(tmp_path / "v1.safetensors")
    with pytest.raises(ValueError, match=r'without a vocabulary; give batch\["tokens"\]'):
        model.condition({"text": ["a cat"]})
    assert model.condition({"tokens": torch.zeros(1, 77, dtype=torch.long)}).context.shape == (1, 77, 32)


@pytest.mark.parametrize("nested", ["text_model.encoder.text_model.", ""])
def test_text_encoders_that_are_nested_otherwise(tmp_path, nested):
    state = {key.replace("transformer.text_model.", f"transformer.{nested}"): value for key, value in sd_state().items()}
    save_file(state, tmp_path / "v1.safetensors")
    model = load_compvis(tmp_path / "v1.safetensors")
    assert isinstance(model.conditioners[0], FrozenTextConditioner)


def test_the_inpainting_variant_has_the_mask_first(tmp_path):
    save_file(sd_state(concat=5), tmp_path / "inpaint.safetensors")
    model = load_compvis(tmp_path / "inpaint.safetensors")
    masked = model.conditioners[0]
    assert isinstance(masked, MaskedImageConditioner)
    assert masked.config.convention == "sd"
    image, mask = torch.rand(1, 3, 64, 64) * 2 - 1, torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    with torch.no_grad():
        cond = model.condition({"image": image, "mask": mask, "tokens": torch.zeros(1, 77, dtype=torch.long)})
        latent = model.encode(torch.where(mask > 0.5, 0.0, image))
        torch.testing.assert_close(cond.concat, torch.cat([mask[:, :, ::8, ::8], latent], dim=1))
        assert model.predict(torch.randn(1, 4, 8, 8), torch.tensor([500]), cond).shape == (1, 4, 8, 8)


def test_weights_stay_as_small_as_asked(tmp_path):
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in sd_state().items()}
    save_file(half, tmp_path / "v1.safetensors")
    model = load_compvis(tmp_path / "v1.safetensors", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        cond = model.condition({"tokens": torch.zeros(1, 77, dtype=torch.long)})
        x0 = model.predict(torch.randn(1, 4, 8, 8), torch.tensor([10]), cond)
        assert x0.dtype == torch.float32
        assert model.first_stage.decode(x0).shape == (1, 3, 64, 64)
        assert model.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 8, 8)
    full = load_compvis(tmp_path / "v1.safetensors")
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


@pytest.mark.parametrize("concat", [0, 5])
def test_out_and_in_again(tmp_path, vocabulary, concat):
    save_file(sd_state(concat), tmp_path / "v1.safetensors")
    model = load_compvis(tmp_path / "v1.safetensors", tokenizer=read_tokenizer(vocabulary))
    notes = save_compvis(model, tmp_path / "again.safetensors", 512)
    assert [note.split()[0] for note in notes] == ["again.tokenizer.json"]
    written = yaml.safe_load((tmp_path / "again.yaml").read_text())["model"]["params"]
    assert written["conditioning_key"] == ("hybrid" if concat else "crossattn")
    again = load_compvis(tmp_path / "again.safetensors")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.conditioners[-1].assets() == model.conditioners[-1].assets()


TEXTS = ["a red cat", "A  Dog, of\n red CATS!", "it's 12 o'clock", "naïve Café 日本 🙂", "", "don't re-do <|endoftext|> it"]


def test_tokens_are_those_of_transformers(tmp_path, vocabulary):
    ours = read_tokenizer(vocabulary)
    entries = ours.get_vocab()
    (tmp_path / "vocab.json").write_text(json.dumps(entries))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES)]))
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    from_folder = read_tokenizer(tmp_path / "vocab.json")
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text).ids == expected, text
        assert from_folder.encode(text).ids == expected, text
    assert entries["<|startoftext|>"] == len(entries) - 2
    assert entries["!"] == 0
    assert entries["!</w>"] == 256


def test_vocabularies_are_found_by_what_they_are(tmp_path, vocabulary, monkeypatch):
    clip_tokenizer(MERGES).save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).encode("red cat").ids == read_tokenizer(vocabulary).encode("red cat").ids
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "cat", "##s"]))
    assert read_tokenizer(bert).encode("Red cats").ids == [2, 5, 6, 7, 3]
    with pytest.raises(ValueError, match="holds no vocabulary"):
        read_tokenizer(tmp_path / "missing")
    (bert / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read as a vocabulary"):
        read_tokenizer(bert)
    package = tmp_path / "site" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    (package / vocabulary.name).write_bytes(vocabulary.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found: Any = open_clip_vocabulary()
    assert found == package / vocabulary.name
