"""Weights from files and bundles: what is loaded, adapted, left random, and refused."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save, save_file
from timm.models import adapt_input_conv

from library import storage
from library.bundle.bundle import Bundle
from library.bundle.description import BundleRecord, weights_file
from library.bundle.ensemble import ensemble
from library.errors import StriateError, UsageError
from library.models.build import create
from library.models.weights import adapt_channels

_RESNET = "resnet18(small_input=True)"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def googlenet() -> dict[str, torch.Tensor]:
    """The tensors of torchvision's file: 1000 classes, with auxiliary heads."""
    torch.manual_seed(1)
    return torchvision.models.googlenet(init_weights=False).state_dict()


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_a_file_of_timms_weights_gives_the_answers_of_timms_network(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    net: Any = timm.create_model("resnet10t", num_classes=6).eval()
    if suffix == "safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    model = create('timm("resnet10t")', num_classes=6, weights=str(path)).eval()
    pixels = torch.rand(2, 3, 32, 32)
    normalised = (pixels - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), net(normalised))
    assert model.loaded is not None
    assert "random" not in model.loaded


@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_the_first_convolution_is_adapted_as_timm_does(channels: int) -> None:
    weight = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(adapt_channels(weight, channels), adapt_input_conv(channels, weight))


@pytest.mark.parametrize("channels", [1, 5])
def test_models_of_torchvision_are_adapted_in_the_same_way(
    channels: int, googlenet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(googlenet, tmp_path / "g.safetensors")
    model = create(f"googlenet(in_chans={channels})", num_classes=2, weights=str(tmp_path / "g.safetensors"))
    torch.testing.assert_close(model.net.conv1.conv.weight, adapt_channels(googlenet["conv1.conv.weight"], channels))
    torch.testing.assert_close(model.net.inception5b.branch1.conv.weight, googlenet["inception5b.branch1.conv.weight"])
    assert model.loaded is not None
    assert f"adapted to {channels} channels: net.conv1.conv.weight" in model.loaded


def test_a_grey_picture_gets_the_answers_of_its_rgb_copy(tmp_path: Path) -> None:
    """The mean and deviation are set equal for all channels, so that the answers agree."""
    torch.manual_seed(0)
    save_file(create("resnet9(width=8)", num_classes=4).state_dict(), tmp_path / "rgb.safetensors")
    rgb, grey = (
        create(call, num_classes=4, weights=str(tmp_path / "rgb.safetensors")).eval()
        for call in ("resnet9(width=8)", "resnet9(width=8, in_chans=1)")
    )
    for model in (rgb, grey):
        model.mean.fill_(0.5)
        model.std.fill_(0.25)
    pictures = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(grey(pictures), rgb(pictures.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)


def test_heads_with_other_classes_stay_random_and_are_named(googlenet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "g.pth"
    torch.save(googlenet, path)
    model = create("googlenet", num_classes=7, weights=str(path))
    assert model.loaded is not None
    assert model.loaded.endswith(
        "initialised at random: net.aux1.fc2.weight, net.aux1.fc2.bias, net.aux2.fc2.weight, net.aux2.fc2.bias, "
        "head.0.weight, head.0.bias"
    )
    torch.testing.assert_close(model.net.aux1.fc1.weight, googlenet["aux1.fc1.weight"])
    without_heads = create("googlenet", num_classes=1000, weights=str(path), auxiliary=False)
    torch.testing.assert_close(without_heads.head[0].weight, googlenet["fc.weight"])


def test_a_bundles_backbone_is_loaded_and_its_head_only_if_it_fits(tmp_path: Path) -> None:
    model = create("resnet9(width=4)", num_classes=2, head=[6])
    model.mean.fill_(0.1)
    _bundle("resnet9(width=4)", model, (6,)).save(str(tmp_path / "b"))
    same = create("resnet9(width=4)", num_classes=2, head=[6], weights=weights_file(str(tmp_path / "b")))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in same.state_dict().items())
    other = create("resnet9(width=4)", num_classes=5, head=[6], weights=weights_file(str(tmp_path / "b")))
    assert torch.equal(other.head[0].weight, model.head[0].weight)
    assert other.loaded is not None
    assert other.loaded.endswith("initialised at random: head.2.weight, head.2.bias")
    plain = create("resnet9(width=4)", num_classes=5, weights=weights_file(str(tmp_path / "b")))
    assert plain.loaded is not None
    assert plain.loaded.endswith("initialised at random: head.0.weight")
    assert torch.equal(plain.net.prep[0].weight, model.net.prep[0].weight)


def test_weights_are_read_from_s3(bucket: str) -> None:
    model = create("lenet5", num_classes=3)
    storage.write_bytes(f"{bucket}/w.safetensors", save(model.state_dict()))
    again = create("lenet5", num_classes=3, weights=f"{bucket}/w.safetensors")
    assert torch.equal(again.net.c1.weight, model.net.c1.weight)


def test_weights_of_another_network_are_refused_by_tensor_names(tmp_path: Path) -> None:
    tensors = create("resnet9(width=4)", num_classes=2).state_dict()
    tensors["net.extra.weight"] = torch.zeros(1)
    del tensors["net.layer2.0.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UsageError) as raised:
        create("resnet9(width=4)", num_classes=2, weights=str(tmp_path / "w.safetensors"))
    assert "do not fit resnet9(width=4)" in str(raised.value)
    assert "'net.layer2.0.weight' is missing; 'net.extra.weight' is not in the model" in str(raised.value)
    with pytest.raises(UsageError, match=r"'net.prep.0.weight' is 4x3x3x3, the model has 8x3x3x3;.*and \d+ more"):
        create("resnet9(width=8)", num_classes=2, weights=str(tmp_path / "w.safetensors"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_could_run_code_is_not_read(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(_Runs(marker)))
    with pytest.raises(StriateError, match="could run code, so it is not read; save only its tensors"):
        create("lenet5", num_classes=2, weights=str(tmp_path / "w.pth"))
    assert not marker.exists()


def test_each_kind_of_file_without_weights_has_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors at all")
    (tmp_path / "bad.pth").write_bytes(b"not tensors at all")
    torch.save({"optimizer": {"lr": 1}}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "folder").mkdir()
    for name, error, message in (
        ("bad.safetensors", StriateError, "is damaged, or not a safetensors file"),
        ("bad.pth", StriateError, "is not read|is damaged"),
        ("other.pt", StriateError, "these are not tensors: optimizer"),
        ("list.pt", StriateError, "holds a list, not tensors by name"),
        ("folder", UsageError, "neither a bundle nor a .safetensors, .pth or .pt file"),
        ("missing.pth", StriateError, "there is no such file"),
    ):
        with pytest.raises(error, match=message):
            create("lenet5", num_classes=2, weights=weights_file(str(tmp_path / name)))


def test_weights_come_from_a_member_of_an_ensemble_not_from_all(tmp_path: Path) -> None:
    members = [_bundle("lenet5", create("lenet5", num_classes=2), ()) for _ in range(2)]
    ensemble(members).save(str(tmp_path / "e"))
    with pytest.raises(UsageError, match=r"is an ensemble; name one of its members, e\.g\. .*/e/members/0"):
        create("lenet5", num_classes=2, weights=weights_file(str(tmp_path / "e")))
    create("lenet5", num_classes=2, weights=weights_file(str(tmp_path / "e" / "members" / "1")))


def test_pretrained_is_refused_for_models_without_such_weights() -> None:
    with pytest.raises(UsageError, match="there are no pre-trained weights of lenet5"):
        create("lenet5", num_classes=2, weights="pretrained")
    with pytest.raises(UsageError, match="have another first convolution; leave small_input out"):
        create(_RESNET, num_classes=2, weights="pretrained")


@pytest.mark.parametrize(("model", "cache"), [("resnet18", "HF_HUB_CACHE"), ("googlenet", "TORCH_HOME")])
def test_without_a_network_the_error_says_what_to_do(
    model: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # Nothing listens on this port.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(StriateError) as raised:
        create(model, num_classes=2, weights="pretrained")
    assert f"cannot get the pre-trained weights of {model} from https://" in str(raised.value)
    assert "set weights to that file" in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert cache in str(raised.value)


class _Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self._path), "w")


def _bundle(model: str, network: Any, head: tuple[int, ...]) -> Bundle:
    classes = tuple(f"class {number}" for number in range(network.num_classes))
    record = BundleRecord(model=model, head=head, classes=classes, input_size=(28, 28), channels=network.in_chans)
    return Bundle.of_model(record, network, device="cpu")
