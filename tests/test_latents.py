"""The latent cache equals the encoder, is reused and renewed by itself, and never half-written; the latent statistics."""

import resource

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from latentworks.data.dataset import ImageDataset
from latentworks.data.latents import LatentDataset, latent_statistics
from latentworks.data.sources import FolderSource
from latentworks.data.text_features import TextFeatures
from latentworks.data.transforms import Preprocess
from latentworks.first_stage.base import FirstStage, Reconstruction
from latentworks.random import generator
from latentworks.staging import staged


class Tiny(FirstStage):
    """f = 2; a Gaussian posterior like the KL stage's, or a point like the VQ's."""

    def __init__(self, kl: bool = True) -> None:
        super().__init__(2, 2, 3)
        self.kl = kl
        self.conv = nn.Conv2d(3, 4 if kl else 2, 2, stride=2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator("tiny")))

    def encode_raw(self, x):
        return self.conv(x)

    def to_latent(self, raw, randn_like=None):
        if not self.kl:
            return self.normalise(raw)
        mean, logvar = raw.chunk(2, dim=1)
        return self.normalise(mean if randn_like is None else mean + torch.exp(0.5 * logvar) * randn_like(mean))

    def decode(self, z):
        raise NotImplementedError

    def forward(self, x, randn_like=None):
        return Reconstruction(x, x.sum())

    @property
    def last_layer(self):
        return self.conv.weight


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (10, 8, 3), dtype=np.uint8)).save(tmp_path / "data" / f"{i}.png")
        (tmp_path / "data" / f"{i}.txt").write_text(f"image {i % 3}")
    return tmp_path / "data"


def images(folder, **settings):
    return ImageDataset(FolderSource(folder), Preprocess(size=8, **settings), seed=3)


@pytest.mark.parametrize("settings", [{}, {"flip": True}, {"crop": "random", "crop_size": 4, "flip": True}])
def test_cached_equals_uncached(folder, tmp_path, settings):
    first_stage, dataset = Tiny(), images(folder, **settings)
    cache = LatentDataset(first_stage, dataset, tmp_path / "cache", variants=4)
    assert cache.variants == {0: 1, 1: 2, 3: 4}[len(settings)]
    progress = list(cache.fill())
    assert progress[-1] == (9 * cache.variants, 9 * cache.variants)
    assert cache.ready
    for step in (None, 0, 1, 2):
        indices = list(range(9))
        batch = cache.batch(indices, step)
        drawn = [cache.variant(i, cache.drawn(i, step)) for i in indices]
        torch.testing.assert_close(batch["raw"], first_stage.encode_raw(dataset.images(indices, drawn)).detach(), atol=1e-6, rtol=1e-6)
        assert batch["text"] == dataset.batch(indices, step)["text"]
        assert batch["index"].tolist() == indices
    if settings:
        assert len({cache.drawn(i, s) for i in range(9) for s in range(9)}) == cache.variants
    torch.testing.assert_close(cache.batch([0])["raw"], first_stage.encode_raw(dataset.batch([0])["image"]).detach(), atol=1e-6, rtol=1e-6)


def test_the_cache_is_reused_and_renewed(folder, tmp_path):
    cache = LatentDataset(Tiny(), images(folder), tmp_path / "cache")
    list(cache.fill())
    again = LatentDataset(Tiny(), images(folder), tmp_path / "cache")
    assert again.ready
    assert list(again.fill()) == []
    assert torch.equal(again.batch([4])["raw"], cache.batch([4])["raw"])

    scaled = Tiny()
    scaled.set_statistics(torch.ones(2), torch.tensor(2.0))
    assert LatentDataset(scaled, images(folder), tmp_path / "cache").ready, "raw latents do not depend on the statistics"
    other = Tiny()
    with torch.no_grad():
        other.conv.bias += 1e-6
    assert not LatentDataset(other, images(folder), tmp_path / "cache").ready
    assert not LatentDataset(Tiny(), images(folder, flip=True), tmp_path / "cache").ready
    assert not LatentDataset(Tiny(), images(folder), tmp_path / "cache", dtype="float16").ready
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "5.png")
    assert not LatentDataset(Tiny(), images(folder), tmp_path / "cache").ready


def test_a_damaged_cache_is_made_anew(folder, tmp_path):
    cache = LatentDataset(Tiny(), images(folder), tmp_path / "cache")
    list(cache.fill())
    file = cache.folder / "raw.npy"
    file.write_bytes(file.read_bytes()[:-100])
    again = LatentDataset(Tiny(), images(folder), tmp_path / "cache")
    assert not again.ready
    with pytest.raises(ValueError, match="latent cache is empty"):
        again.batch([0])
    list(again.fill())
    assert again.ready


def test_damaged_images_stay_known(folder, tmp_path):
    (folder / "2.png").write_bytes(b"x")
    cache = LatentDataset(Tiny(), images(folder), tmp_path / "cache")
    list(cache.fill())
    again = LatentDataset(Tiny(), images(folder), tmp_path / "cache")
    assert again.skipped == cache.skipped == ["2.png"]
    assert torch.equal(again.batch([2])["raw"], again.batch([3])["raw"])
    assert again.batch([2])["text"] == ["image 0"]


def test_half_precision_and_sizes(folder, tmp_path):
    full, half = (LatentDataset(Tiny(), images(folder), tmp_path / "cache", dtype=dtype) for dtype in ("float32", "float16"))
    list(full.fill())
    list(half.fill())
    assert half.batch([1])["raw"].dtype == torch.float32
    torch.testing.assert_close(half.batch([1])["raw"], full.batch([1])["raw"], atol=0, rtol=1e-3)
    with pytest.raises(ValueError, match="not divisible"):
        LatentDataset(Tiny(), images(folder, crop_size=5), tmp_path / "cache")
    with pytest.raises(ValueError, match="variants must be at least 1"):
        LatentDataset(Tiny(), images(folder), tmp_path / "cache", variants=0)


def test_a_full_disk_leaves_nothing(folder, tmp_path):
    cache = LatentDataset(Tiny(), images(folder), tmp_path / "cache")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(ValueError, match="cannot write"):
            list(cache.fill())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []
    list(cache.fill())
    assert cache.ready


def test_stopping_leaves_nothing(folder, tmp_path):
    cache = LatentDataset(Tiny(), images(folder), tmp_path / "cache")
    filling = cache.fill()
    next(filling)
    filling.close()
    assert list((tmp_path / "cache").iterdir()) == []


def test_staged_folders(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("kept")
    with pytest.raises(ValueError, match="cannot write"), staged(tmp_path / "full") as temporary:
        (temporary / "y").write_text("lost")
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "x"]


def test_text_features(folder, tmp_path):
    asked = []

    def encode(texts):
        asked.extend(texts)
        return torch.stack([torch.full((4, 3), float(len(text))) + torch.arange(3) for text in texts])

    def features():
        captions = [caption for entry in FolderSource(folder).entries for caption in entry.text]
        return TextFeatures(encode, "encoder 1", captions, tmp_path / "cache")

    cache = LatentDataset(Tiny(), images(folder), tmp_path / "cache", text_features=features())
    assert not cache.ready
    list(cache.fill())
    assert sorted(asked) == ["", "image 0", "image 1", "image 2"], "each caption once"
    batch = cache.batch([1, 5])
    torch.testing.assert_close(batch["text_features"], encode(batch["text"]))
    assert LatentDataset(Tiny(), images(folder), tmp_path / "cache", text_features=features()).ready
    assert not TextFeatures(encode, "encoder 2", ["image 0"], tmp_path / "cache").ready
    with pytest.raises(ValueError, match="'a cat' is not among the 4 stored captions"):
        cache.text_features(["a cat"])


@pytest.mark.parametrize("kl", [True, False])
def test_statistics_are_those_of_sampled_latents(folder, kl):
    first_stage, dataset = Tiny(kl), images(folder)
    mean, std = latent_statistics(first_stage, dataset.batches(4))
    assert not first_stage.normalised, "the statistics are left as they were"
    first_stage.set_statistics(torch.zeros(2), torch.ones(()))
    raw = first_stage.encode_raw(dataset.batch(range(9))["image"]).detach()
    noise = generator("statistics")
    samples = torch.cat([first_stage.to_latent(raw, lambda x: torch.randn(x.shape, generator=noise)) for _ in range(3000 if kl else 1)])
    torch.testing.assert_close(mean, samples.mean((0, 2, 3)), atol=0.02 if kl else 1e-5, rtol=0)
    expected = (samples - samples.mean((0, 2, 3)).view(1, -1, 1, 1)).square().mean().sqrt()
    torch.testing.assert_close(std, expected, rtol=0.01 if kl else 1e-5, atol=0)
    first_stage.set_statistics(mean, std)
    again = latent_statistics(first_stage, dataset.batches(9))
    torch.testing.assert_close((mean, std), again)
    if not kl:
        assert first_stage.to_latent(raw).var(unbiased=False).item() == pytest.approx(1, abs=1e-4)


def test_statistics_need_images():
    with pytest.raises(ValueError, match="at least one batch"):
        latent_statistics(Tiny(), [])
