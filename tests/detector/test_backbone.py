"""ResNet and feature pyramid: pretrained weights, norms, frozen stages."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import create_feature_extractor

from detector import backbone
from detector.anchors import STRIDES
from detector.backbone import FeaturePyramid, ResNet, make_norm
from detector.folding import BatchNorm, FrozenNorm, fold_norms, plain_convolutions, unfold_norms
from detector.training.sync_norm import synchronise_norms
from errors import InputError

# What every get_state_dict of torchvision ends up calling.
DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


def picture(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def imagenet_resnet18() -> nn.Module:
    """torchvision's classifier with weights that no other initialisation would give."""
    torch.manual_seed(5)
    model = torchvision.models.resnet18(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_pretrained_features_equal_torchvisions(monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    theirs = imagenet_resnet18()
    monkeypatch.setattr(DOWNLOAD, lambda url, **kwargs: theirs.state_dict())
    ours = ResNet("resnet18", norm, pretrained=True, frozen_stages=0).eval()
    layers = create_feature_extractor(theirs, ["layer2", "layer3", "layer4"])
    with torch.no_grad():
        for mine, expected in zip(ours(picture(0)), layers(picture(0)).values(), strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_narrow_network_is_a_corner_of_torchvisions(name: str) -> None:
    """With the weights of all other channels at 0, torchvision's first channels equal our features."""
    torch.manual_seed(3)
    ours = ResNet(name, "batch", pretrained=False, frozen_stages=0, base_channels=24).double().eval()
    theirs = getattr(torchvision.models, name)(weights=None).double().eval()
    state = theirs.state_dict()
    narrow = ours.body.state_dict()
    assert narrow.keys() == {key for key in state if not key.startswith("fc.")}
    for key, value in narrow.items():
        corner = tuple(slice(size) for size in value.shape)
        state[key].zero_()[corner].copy_(value)  # the variance of the others is 0, too: they give 0 / eps
        if value.dim() == 1:
            assert value.shape[0] * 64 == state[key].shape[0] * 24
    theirs.load_state_dict(state)
    layers = create_feature_extractor(theirs, ["layer2", "layer3", "layer4"])
    with torch.no_grad():
        features = ours(picture(0).double()), layers(picture(0).double()).values()
        for mine, wide, channels in zip(*features, ours.channels, strict=True):
            assert mine.shape[1] == channels
            torch.testing.assert_close(mine, wide[:, :channels])
            assert not wide[:, channels:].any()


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_a_wide_network_begins_as_torchvisions_do(norm: str) -> None:
    """Standard deviation of the weights by He et al., 2015, for the backward pass; norms as constructed."""
    torch.manual_seed(4)
    body = ResNet("resnet18", norm, pretrained=False, frozen_stages=2, base_channels=96).body
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert module.bias is None
    assert type(body.layer4[0].bn1) is type(make_norm(norm, 768))
    assert body.layer4[0].bn1.weight.shape == (768,)
    assert not any(parameter.is_meta for parameter in body.parameters())
    assert not body.layer1[0].conv1.weight.requires_grad and body.layer2[0].conv1.weight.requires_grad


@pytest.mark.parametrize(
    "failure",
    [
        URLError("Name or service not known"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00")\nsecond line'),
        TimeoutError(),
    ],
    ids=["offline", "damaged", "silent"],
)
def test_failed_download_ends_in_one_line_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def refuse(url: str, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(DOWNLOAD, refuse)
    with pytest.raises(InputError, match=r"model\.pretrained=false") as caught:
        ResNet("resnet18", "frozen", pretrained=True, frozen_stages=2)
    message = str(caught.value)
    assert "\n" not in message
    assert "model.norm=batch" in message and "model.frozen_stages=0" in message


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path where torch keeps the downloaded weights; there is no file yet."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "resnet18-f37072fd.pth"


@pytest.mark.parametrize("content", ["empty", "a page", "cut off", "other names", "no dict", "a program"])
def test_a_wrong_file_where_torch_keeps_its_downloads_is_named(
    file: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example put there by hand on a machine without internet: torch checks only its own downloads."""
    state = imagenet_resnet18().state_dict()
    torch.save(state if content == "cut off" else {f"module.{k}": v for k, v in state.items()}, file)
    if content == "cut off":
        file.write_bytes(file.read_bytes()[:-1000])
    elif content == "no dict":
        torch.save([1, 2], file)
    elif content == "a program":  # it would print if it were run
        file.write_bytes(b"\x80\x02cbuiltins\nprint\nX\x05\x00\x00\x00helloq\x00\x85q\x01Rq\x02.")
    elif content != "other names":
        file.write_text("<html>log in</html>" if content == "a page" else "")
    with pytest.raises(InputError, match="does not contain the ImageNet weights of resnet18") as caught:
        ResNet("resnet18", "frozen", pretrained=True, frozen_stages=2)
    assert capsys.readouterr().out == ""
    message = str(caught.value)
    assert str(file) in message and "delete it" in message and "\n" not in message
    for new_format in (False, True):  # torchvision's older files are in the old format
        torch.save(state, file, _use_new_zipfile_serialization=new_format)
        ResNet("resnet18", "group", pretrained=True, frozen_stages=0)


@pytest.mark.parametrize(
    "failure", [PermissionError(13, "Permission denied"), RuntimeError("can't allocate memory")]
)
def test_what_the_file_is_not_to_blame_for_costs_no_file(
    monkeypatch: pytest.MonkeyPatch, file: Path, failure: Exception
) -> None:
    file.touch()

    def refuse(url: str, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(DOWNLOAD, refuse)
    with pytest.raises((InputError, RuntimeError)) as caught:
        ResNet("resnet18", "frozen", pretrained=True, frozen_stages=2)
    if isinstance(failure, RuntimeError):
        assert caught.value is failure
    else:
        assert f"{file} cannot be read or written (Permission denied)" in str(caught.value)
        assert "delete" not in str(caught.value)


def unfolded(network: ResNet, x: Tensor) -> list[Tensor]:
    """The oracle: convolution and norm one after the other, as torchvision has them."""
    plain = copy.deepcopy(network)
    unfold_norms(plain)
    return plain(x)


@pytest.mark.parametrize(("norm", "training"), [("frozen", True), ("frozen", False), ("batch", False)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folded_norms_give_the_same_features_and_gradients(name: str, norm: str, training: bool) -> None:
    torch.manual_seed(1)
    network = ResNet(name, norm, pretrained=False, frozen_stages=0).double().train(training)
    for key, value in network.state_dict().items():
        if "bn" in key or "downsample.1" in key:
            value.copy_(torch.rand(value.shape) + 0.5 if value.dim() else value)
    plain = copy.deepcopy(network)
    unfold_norms(plain)
    results = []
    for one in (network, plain):
        x = picture(0).double().requires_grad_()
        features = one(x)
        sum(f.square().sum() for f in features).backward()
        results.append([*features, x.grad, *(p.grad for p in one.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 20
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(
            mine, expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max())
        )
    assert list(network.state_dict()) == list(plain.state_dict())


def test_only_what_a_norm_can_be_folded_into_is_folded() -> None:
    """Whatever the stride and groups. A convolution with a bias, which would be lost, keeps its norm."""
    generator = torch.Generator().manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, groups=2, bias=False),
        BatchNorm(8),
        nn.Conv2d(8, 6, 3),
        BatchNorm(6),
    ).eval()
    for tensor in plain.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    x = torch.rand(1, 4, 15, 13, generator=generator)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    assert [module.folded for module in folded if isinstance(module, BatchNorm)] == [True, False]
    torch.testing.assert_close(folded(x), plain(x))
    plain_convolutions(folded)
    torch.testing.assert_close(folded(x), plain(x))


def loss_and_kept_bytes(network: ResNet) -> tuple[Tensor, int]:
    """Some loss, and how many bytes are kept for its backward pass."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = torch.stack([f.square().sum() for f in network(picture(0))]).sum()
    return loss, sum(kept)


@pytest.mark.parametrize("norm", ["batch", "frozen", "group", "synchronised"])
def test_checkpointed_activations_change_nothing_but_memory(norm: str) -> None:
    """It changes neither gradients nor running statistics, which the second forward pass must not update."""
    torch.manual_seed(1)
    network = ResNet(
        "resnet18", "batch" if norm == "synchronised" else norm, pretrained=False, frozen_stages=2
    )
    if norm == "synchronised":
        synchronise_norms(network, torch.device("cuda"))
        assert any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    results = []
    for on in (False, True):
        one = copy.deepcopy(network).train()
        one.checkpoint_activations = on
        loss, kept_bytes = loss_and_kept_bytes(one)
        loss.backward()
        momenta = {m.momentum for m in one.modules() if isinstance(m, _BatchNorm)}
        assert momenta <= {0.1}
        results.append((kept_bytes, one))
    (plain_bytes, plain), (few_bytes, few) = results
    assert few_bytes < 0.5 * plain_bytes
    for mine, expected in zip(few.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (expected.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, expected.grad)
    for mine, expected in zip(few.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, expected)


def test_compiled_stages_are_checkpointed_at_every_shape() -> None:
    """As with inductor, but without its code generation; the second pass must use the graph of the first."""
    torch.manual_seed(1)
    network = ResNet("resnet18", "batch", pretrained=False, frozen_stages=0)
    for number in (1, 2, 3, 4):  # small stages, since compiling takes time
        channels = 64 if number == 1 else 8
        stage = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), make_norm("batch", 8), nn.ReLU())
        setattr(network.body, f"layer{number}", stage)
    compiled = copy.deepcopy(network)
    compiled.checkpoint_activations = True
    compiled.compile(backend="aot_eager")
    torch._dynamo.reset()
    for one in (network, compiled):
        one.eval()(picture(0))
        one.train()
        for images in (picture(0), picture(1)[..., :64], picture(2)):
            torch.stack([f.square().mean() for f in one(images)]).sum().backward()
    for mine, expected in zip(compiled.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad)
    for mine, expected in zip(compiled.buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_batch_norm_is_not_folded_in_training() -> None:
    torch.manual_seed(1)
    network = ResNet("resnet18", "batch", pretrained=False, frozen_stages=0)
    plain = copy.deepcopy(network)
    unfold_norms(plain)
    for mine, expected in zip(network(picture(0)), plain(picture(0)), strict=True):
        assert torch.equal(mine, expected)
    for mine, expected in zip(network.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, expected)
    copied = copy.deepcopy(network).eval()  # copied as the moving average is: the copy must use its own norms
    for buffer in network.buffers():
        buffer.zero_()
    assert torch.equal(copied(picture(0))[0], copy.deepcopy(copied)(picture(0))[0])
    torch.testing.assert_close(copied(picture(0))[2], unfolded(copied, picture(0))[2])


def test_a_norm_in_training_cannot_be_fixed() -> None:
    """It would be lost: its convolution would have no bias, and the norm is skipped in evaluation."""
    network = ResNet("resnet18", "batch", pretrained=False, frozen_stages=0)
    with pytest.raises(ValueError, match="eval"):
        plain_convolutions(network)
    expected = network.eval()(picture(0))
    plain_convolutions(network)
    for mine, theirs in zip(network(picture(0)), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_frozen_norm_follows_whatever_happens_to_its_buffers() -> None:
    """What it has computed is cached, but never beyond a change."""
    torch.manual_seed(1)
    network = ResNet("resnet18", "frozen", pretrained=False, frozen_stages=0)
    state = {key: torch.rand_like(value) + 0.5 for key, value in network.state_dict().items()}
    plain = copy.deepcopy(network)
    unfold_norms(plain)
    changes: list[Callable[[ResNet], object]] = [
        lambda one: None,
        lambda one: one.load_state_dict({k: v for k, v in state.items() if "bn" in k}, strict=False),
        *(
            lambda one, name=name: dict(one.named_buffers())[f"body.bn1.{name}"].add_(0.5)
            for name in ("weight", "bias", "running_mean", "running_var")
        ),
        lambda one: torch._foreach_lerp_(list(one.buffers()), [b + 1 for b in one.buffers()], 0.5),
        lambda one: one.double(),
        lambda one: setattr(one.body.bn1, "bias", one.body.bn1.bias + 1),
    ]
    before = torch.zeros(())
    for number, change in enumerate(changes):
        for one in (network, plain):
            change(one)
        x = picture(0).to(network.body.bn1.weight.dtype)
        mine, expected = network(x)[2], plain(x)[2]
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3 * float(expected.detach().max()))
        assert number in (0, 7) or not torch.allclose(mine, before)
        before = mine.detach()
    assert network.body.bn1.scale_and_shift()[0] is network.body.bn1.scale_and_shift()[0]
    assert torch.equal(copy.deepcopy(network)(x)[2], mine)
    with torch.inference_mode():  # its tensors have no version counter
        assert torch.equal(copy.deepcopy(network)(x)[2], mine)


def test_training_goes_on_after_a_pass_in_inference_mode() -> None:
    """For example a user's own validation: what a frozen norm cached there allows no backward pass."""
    network = ResNet("resnet18", "frozen", pretrained=False, frozen_stages=0)
    with torch.inference_mode():
        expected = network(picture(0))[2].clone()
    found = network(picture(0))[2]
    found.sum().backward()
    assert torch.equal(found, expected)


def test_a_frozen_norm_that_was_made_in_inference_mode_can_be_used_outside() -> None:
    """Its buffers have no version counter, and reading one raises an error."""
    with torch.inference_mode():
        norm = FrozenNorm(2)
    for weight in (2.0, 3.0):
        with torch.inference_mode():
            norm.weight.fill_(weight)
        assert norm.scale_and_shift()[0].tolist() == pytest.approx([weight, weight], rel=1e-4)


@pytest.mark.parametrize("loads", [0, 1, 2, 3])
def test_a_copied_frozen_norm_sees_the_weights_that_it_is_given(loads: int) -> None:
    """The version counters of a copy's buffers start from zero again."""
    norm = FrozenNorm(4)
    for _ in range(loads):
        norm.load_state_dict(norm.state_dict())
    norm.scale_and_shift()
    twin = copy.deepcopy(norm)
    twin.load_state_dict({**norm.state_dict(), "weight": torch.full((4,), 7.0)})
    assert torch.equal(twin.scale_and_shift()[0], 7 * norm.scale_and_shift()[0])


def test_no_download_without_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, **kwargs: object) -> None:
        raise URLError("offline")

    monkeypatch.setattr(DOWNLOAD, refuse)
    assert ResNet("resnet18", "batch", pretrained=False, frozen_stages=0).channels == [128, 256, 512]


STAGES = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("count", range(6))
def test_frozen_stages_are_fixed_from_the_stem_on(count: int, norm: str) -> None:
    network = ResNet("resnet18", norm, pretrained=False, frozen_stages=count)
    body = network.body
    fixed = {part for stage in STAGES[:count] for part in stage}
    names = dict(body.named_parameters())
    assert "conv1.weight" in names and "layer4.1.conv2.weight" in names
    for name, parameter in names.items():
        assert parameter.requires_grad == (name.split(".")[0] not in fixed), name
    before = {name: buffer.clone() for name, buffer in body.named_buffers()}
    for _ in range(2):  # as built, and as at the first step of a training
        network(picture(0) + 3)
        network.train()
    for name, buffer in body.named_buffers():
        still = torch.equal(buffer, before[name])
        assert still == (norm == "frozen" or name.split(".")[0] in fixed), name


def test_frozen_statistics_stay_while_batch_statistics_move() -> None:
    """One training step on images whose statistics are not those of the norm layers."""
    moved = {}
    for norm in ("frozen", "batch"):
        torch.manual_seed(0)
        model = ResNet("resnet18", norm, pretrained=False, frozen_stages=0).train()
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sum(x.mean() for x in model(picture(0) + 3)).backward()
        optimizer.step()
        moved[norm] = [name for name, buffer in model.named_buffers() if not buffer.equal(before[name])]
        if norm == "frozen":
            assert {"body.bn1.weight", "body.bn1.bias", "body.bn1.running_var"} <= before.keys()
    assert moved["frozen"] == []
    assert "body.bn1.running_mean" in moved["batch"] and "body.bn1.running_var" in moved["batch"]


def test_group_norm_keeps_images_of_a_training_batch_apart() -> None:
    torch.manual_seed(0)
    model = ResNet("resnet18", "group", pretrained=False, frozen_stages=0).double().train()
    images = picture(0).double()
    with torch.no_grad():
        together, alone = model(images), model(images[:1])
    for one, both in zip(alone, together, strict=True):
        assert one.std() > 0
        torch.testing.assert_close(one[0], both[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 32), (48, 16), (32, 16), (24, 8), (6, 2), (7, 1), (1, 1)]
)
def test_group_norm_takes_the_most_groups_that_fit(channels: int, groups: int) -> None:
    norm = make_norm("group", channels)
    assert norm.num_groups == groups
    if channels > 1:  # one image, one location: as P7 of a small image
        a, b = (norm(torch.randn(1, channels, 1, 1, generator=torch.manual_seed(s))) for s in range(2))
        assert (a - b).abs().max() > 0.1


@pytest.mark.parametrize("p6_from", ["c5", "p5"])
def test_pyramid_has_five_levels_each_half_the_one_before(p6_from: str) -> None:
    pyramid = FeaturePyramid([8, 12, 20], 16, p6_from)
    height, width = 256, 384
    features = [
        torch.randn(1, c, height // s, width // s) for c, s in zip((8, 12, 20), STRIDES, strict=False)
    ]
    shapes = [tuple(level.shape) for level in pyramid(features)]
    assert shapes == [(1, 16, height // stride, width // stride) for stride in STRIDES]


@pytest.mark.parametrize(("p6_from", "reached"), [("c5", False), ("p5", True)])
def test_p6_is_made_from_where_the_configuration_says(p6_from: str, reached: bool) -> None:
    """From P5 the gradient of P6 passes through the pyramid's last convolution; from C5 it does not."""
    pyramid = FeaturePyramid([8, 12, 20], 16, p6_from)
    features = [torch.randn(1, c, 32 // s, 32 // s) for c, s in ((8, 1), (12, 2), (20, 4))]
    pyramid(features)[3].sum().backward()
    assert (pyramid.output[2].weight.grad is not None) == reached


def test_published_weights_are_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def give(weights):
        asked.append(weights.name)
        return torchvision.models.resnet50().state_dict()

    monkeypatch.setattr(backbone, "state_dict_of", give)
    backbone.ResNet("resnet50", "frozen", pretrained=True, frozen_stages=0)
    assert asked == ["IMAGENET1K_V1"]


def test_the_pyramid_starts_as_published() -> None:
    """Uniform within sqrt(3 / fan in), biases 0, as in torchvision."""
    torch.manual_seed(0)
    for layer in FeaturePyramid([64, 128, 256], 64, "c5").modules():
        if isinstance(layer, nn.Conv2d):
            bound = math.sqrt(3 / layer.weight[0].numel())
            assert 0.9 * bound < layer.weight.abs().max().item() <= bound
            assert not layer.bias.any()
