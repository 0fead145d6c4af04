"""model.init: weights of a torchvision RetinaNet and of this project's checkpoints."""

import logging
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

import train
from detector.builders.network import build_model
from detector.config import ModelConfig
from detector.config.file import load_config
from detector.retinanet import RetinaNet
from detector.training.assembly import build_initial_model
from detector.training.trainer import Trainer
from detector.weights import from_torchvision, initialise
from errors import InputError
from tests.builders import TINY_MODEL, small_coco

PROJECT = Path(train.__file__).parent
TINY = {
    "backbone": "resnet18",
    "base_channels": 8,
    "pretrained": False,
    "norm": "batch",
    "frozen_stages": 0,
    "pyramid_channels": 16,
    "head_width": 16,
    "head_depth": 1,
}
OUTPUT = {"class_head.output.weight", "class_head.output.bias"}


def tiny(seed: int, classes: int = 3, **changes: object) -> RetinaNet:
    torch.manual_seed(seed)
    return build_model(ModelConfig(**{**TINY, **changes}), classes, pretrained=False)


STD = torch.tensor([0.1, 0.1, 0.2, 0.2])


@cache
def torchvision_state() -> dict[str, Tensor]:
    return retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).state_dict()


def weights(model: RetinaNet) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}


def test_own_weights_load_completely() -> None:
    source, model = tiny(0), tiny(1)
    source.backbone.body.bn1.running_mean.fill_(0.25)
    initialise(model, source.state_dict(), "source.pt", STD)
    for name, tensor in weights(model).items():
        assert tensor.equal(source.state_dict()[name]), name


def test_deltas_of_a_checkpoint_mean_the_same_boxes_with_another_box_std() -> None:
    source, model = tiny(0), tiny(1)
    torch.nn.init.uniform_(source.box_head.output.bias)
    other = [0.2, 0.1, 0.4, 0.1]
    content = {"model": source.state_dict(), "config": {"model": {"box_std": other}}}
    initialise(model, content, "source.pt", STD)
    images, sizes = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]])
    with torch.no_grad():
        ours, theirs = model.eval()(images, sizes), source.eval()(images, sizes)
    expected = theirs.deltas * (torch.tensor(other) / STD)
    torch.testing.assert_close(ours.deltas, expected, rtol=1e-4, atol=1e-6)
    assert ours.logits.equal(theirs.logits)


@pytest.mark.parametrize(
    ("theirs", "changes"),
    [
        (retinanet_resnet50_fpn, []),
        (retinanet_resnet50_fpn_v2, ["model.p6_from=c5", "model.head_norm=group"]),
    ],
)
def test_torchvision_names_map_one_to_one(theirs: Callable[..., nn.Module], changes: list[str]) -> None:
    """Every weight of the file maps to one of ours with the same shape, and none is left over.

    The model is that of the configuration made for it, with the changes that its comment names.
    """
    path = PROJECT / "configs" / "torchvision_r50.yaml"
    for change in changes:
        assert change in path.read_text()
    config = load_config(path, changes).model
    state = theirs(weights=None, weights_backbone=None, num_classes=4).state_dict()
    mapped = from_torchvision(state, "torchvision.pth")
    with torch.device("meta"):
        own = build_model(config, 4, pretrained=False).state_dict()
    counters = {name for name in mapped if name.endswith("num_batches_tracked")}  # frozen norms have none
    assert {n: t.shape for n, t in mapped.items() if n not in counters} == {
        n: t.shape for n, t in own.items()
    }


@pytest.mark.parametrize(
    ("name", "theirs", "words"),
    [
        ("coco", retinanet_resnet50_fpn, []),
        ("coco_v2", retinanet_resnet50_fpn_v2, ["model.p6_from=c5", "model.head_norm=group"]),
    ],
)
def test_torchvisions_coco_weights_are_fetched_by_name(
    name: str, theirs: Callable[..., nn.Module], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, so with weights made here. Classes of COCO keep their outputs, others start from scratch."""
    torch.manual_seed(0)
    state = theirs(weights=None, weights_backbone=None).state_dict()
    torch.nn.init.uniform_(state["head.classification_head.cls_logits.bias"])
    fetched: list[str] = []

    def fetch(url: str, **options: object) -> dict[str, Tensor]:
        fetched.append(url.rpartition("/")[2])
        assert options["check_hash"]
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    path = PROJECT / "configs" / "torchvision_r50.yaml"
    assert load_config(path, words).model.init == "coco"
    config = load_config(path, [f"model.init={name}", *words]).model
    model = build_initial_model(config, ["cat", "axolotl"], fresh=True)
    version = name.removeprefix("coco")
    assert [one.rpartition("-")[0] for one in fetched] == [f"retinanet_resnet50_fpn{version}_coco"]
    biases = model.class_head.output.bias.view(-1, 2)
    # COCO's ids begin with 1, person; 17 is a cat.
    assert biases[:, 0].equal(state["head.classification_head.cls_logits.bias"].view(-1, 91)[:, 17])
    assert biases[:, 1].tolist() == pytest.approx([-math.log(99)] * len(biases))
    assert model.pyramid.p7.weight.equal(state["backbone.fpn.extra_blocks.p7.weight"])
    build_initial_model(config, ["cat"], fresh=False)  # a checkpoint will follow: nothing is fetched
    assert len(fetched) == 1


def test_coco_weights_that_cannot_be_fetched_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(url: str, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    config = ModelConfig(**TINY, init="coco")
    with pytest.raises(InputError, match=r"^model\.init=coco has a ResNet-50: .*model\.backbone=resnet50"):
        build_initial_model(config, ["cat"], fresh=True)
    large = ModelConfig(**{**TINY, "backbone": "resnet50"}, init="coco")
    place = rf"coco-\w+\.pth into {tmp_path}"
    message = rf"^model\.init: .*'coco' could not be downloaded .*{place}.*model\.init .*null$"
    with pytest.raises(InputError, match=message):
        build_initial_model(large, ["cat"], fresh=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()  # a data set, say
    with pytest.raises(InputError, match=message):
        build_initial_model(large, ["cat"], fresh=True)
    capitals = ModelConfig(**TINY, init="COCO")
    with pytest.raises(InputError, match=r"^model\.init: COCO does not exist; .* names coco, coco_v2$"):
        build_initial_model(capitals, ["cat"], fresh=True)
    (tmp_path / "coco").rmdir()  # a file of that name takes precedence
    torch.save(tiny(0, classes=1).state_dict(), "coco")
    model = build_initial_model(config, ["cat"], fresh=True)
    assert model.class_head.output.weight.equal(tiny(0, classes=1).class_head.output.weight)


def test_names_that_torchvision_does_not_have_are_refused() -> None:
    with pytest.raises(InputError, match=r"^model\.init: ssd\.pth has 'head\.mask_head\.weight'"):
        from_torchvision({"head.mask_head.weight": torch.zeros(1)}, "ssd.pth")


@pytest.mark.parametrize("key", ["model", "state_dict", None])
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_wrappers_of_other_trainers_are_taken_off(key: str | None, wrapper: str) -> None:
    source, model = tiny(0), tiny(1)
    state = {wrapper + name: tensor for name, tensor in source.state_dict().items()}
    initialise(model, {key: state, "epoch": 3} if key else state, "source.pt", STD)
    assert all(tensor.equal(weights(source)[name]) for name, tensor in weights(model).items())


def test_another_number_of_classes_leaves_the_class_output_out(caplog: pytest.LogCaptureFixture) -> None:
    source, model = tiny(0, classes=3), tiny(1, classes=5)
    before = weights(model)
    with caplog.at_level(logging.WARNING):
        initialise(model, source.state_dict(), "source.pt", STD)
    assert len(caplog.records) == 1 and "source.pt" in caplog.text and "classes" in caplog.text
    for name, tensor in weights(model).items():
        assert tensor.equal(before[name] if name in OUTPUT else source.state_dict()[name]), name


def class_outputs(model: RetinaNet, classes: list[str]) -> dict[str, Tensor]:
    """For each class, biases and weights of its outputs: [anchors, 1 + weights]."""
    output = model.class_head.output
    rows = torch.cat((output.bias[:, None], output.weight.flatten(1)), 1).detach().clone()
    return dict(zip(classes, rows.unflatten(0, (-1, len(classes))).unbind(1), strict=True))


@pytest.mark.parametrize("classes", [["dog", "bird", "cat"], ["cat", "bird", "dog", "fish"], ["bird"]])
def test_classes_of_the_same_name_keep_their_outputs(
    classes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    known = ["cat", "cow", "dog"]
    source, model = tiny(0, classes=3), tiny(1, classes=len(classes))
    expected = class_outputs(model, classes) | class_outputs(source, known)
    with caplog.at_level(logging.WARNING):
        initialise(model, {"model": source.state_dict(), "classes": known}, "source.pt", STD, classes)
    for name, rows in class_outputs(model, classes).items():
        assert rows.equal(expected[name]), name
    assert model.box_head.output.weight.equal(source.box_head.output.weight)
    (warning,) = caplog.messages
    assert "bird" in warning and "cat" not in warning


@pytest.mark.parametrize("told", [3, ["cat", "dog"], {"cat": 1}])
def test_classes_that_are_not_the_outputs_are_not_believed(
    told: object, caplog: pytest.LogCaptureFixture
) -> None:
    """For example their number, or a list without torchvision's background."""
    source, model = tiny(0, classes=3), tiny(1, classes=3)
    with caplog.at_level(logging.WARNING):
        content = {"model": source.state_dict(), "classes": told}
        initialise(model, content, "source.pt", STD, ["dog", "cat", "bird"])
    assert model.class_head.output.weight.equal(source.class_head.output.weight)
    assert caplog.messages == []


def test_outputs_of_torchvision_are_those_of_cocos_classes(caplog: pytest.LogCaptureFixture) -> None:
    """Its labels are COCO's category ids: 1 is person, 90 toothbrush, and some ids are unused."""
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    model = build_model(ModelConfig(p6_from="p5", norm="batch"), 3, pretrained=False)
    classes = ["toothbrush", "person", "dog"]
    with caplog.at_level(logging.WARNING):
        initialise(model, theirs.state_dict(), "torchvision.pth", torch.ones(4), classes)
    bias = theirs.head.classification_head.cls_logits.weight.unflatten(0, (9, 91))
    assert model.class_head.output.weight.unflatten(0, (9, 3)).equal(bias[:, [90, 1, 18]])
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("version", "classes", "eps", "norm"),
    [
        (retinanet_resnet50_fpn, 91, 0.0, "frozen"),
        (retinanet_resnet50_fpn, 91, 0.0, "batch"),
        (retinanet_resnet50_fpn, 5, 1e-5, "frozen"),
        (retinanet_resnet50_fpn_v2, 91, 1e-5, "frozen"),
    ],
)
def test_norms_of_coco_v1_are_those_of_torchvision(
    version: Callable[..., nn.Module], classes: int, eps: float, norm: str
) -> None:
    """torchvision's norms of these weights have an eps of 0, which matters where a variance is small."""
    theirs = version(weights=None, weights_backbone=None, num_classes=classes).eval()
    body = theirs.backbone.body
    body.bn1.eps = eps
    variances = body.bn1.running_var.uniform_(5e-6, 5e-5)
    variances[0] = 1e-7
    if eps == 0:  # a channel that never changes
        body.conv1.weight.data[1], variances[1] = 0, 1e-14
    second = version is retinanet_resnet50_fpn_v2
    words = {"p6_from": "c5", "head_norm": "group"} if second else {"p6_from": "p5"}
    config = ModelConfig(**words, norm=norm, pretrained=False)
    model = build_model(config, classes, pretrained=False).eval()
    initialise(model, theirs.state_dict(), "torchvision.pth", torch.ones(4))
    stems = [m.backbone.body for m in (model, theirs)]
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, expected = (stem.bn1(stem.conv1(images)) for stem in stems)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-2)  # values are in the hundreds


def test_of_a_run_of_another_architecture_the_settings_are_told() -> None:
    no_part_of_it = {"init": "a.pt", "pretrained": True, "box_std": [1, 1, 1, 1]}
    settings = {"head_width": 16, "norm": "batch", **no_part_of_it}
    other = {"init": None, "pretrained": False, "box_std": [0.1, 0.1, 0.2, 0.2]}
    config = {"model": {"head_width": 24, "norm": "batch", **other, "older": 1}}
    content = {"model": tiny(0, head_width=24).state_dict(), "config": config}
    with pytest.raises(InputError, match=r"class_head.*; that run has 'model\.head_width=24', or set"):
        initialise(tiny(1), content, "source.pt", STD, (), settings)


def test_equal_number_of_classes_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        initialise(tiny(1), tiny(0).state_dict(), "source.pt", STD)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"head_width": 24}, "class_head.tower.0.weight"),
        ({"head_depth": 2}, "class_head.tower.2.weight"),
        ({"pyramid_channels": 24}, "pyramid.lateral.0.weight"),
        ({"p6_from": "p5"}, "pyramid.p6.weight"),
        ({"backbone": "resnet34"}, "backbone.body.layer1.2.conv1.weight"),
        ({"base_channels": 16}, "backbone.body.conv1.weight"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True], ids=["model differs", "file differs"])
def test_another_architecture_is_refused_at_its_first_difference(
    changes: dict[str, object], first: str, swapped: bool
) -> None:
    """Both ways round: weights that are missing in the file, and weights that the model has no place for."""
    model, source = tiny(1, **changes), tiny(0)
    if swapped:
        model, source = source, model
    before = weights(model)
    with pytest.raises(InputError, match=first.replace(".", r"\.")) as caught:
        initialise(model, source.state_dict(), "source.pt", STD)
    assert "source.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert all(tensor.equal(before[name]) for name, tensor in weights(model).items())


@pytest.mark.parametrize("changes", [{"head_width": 24}, {"anchors": {"ratios": [0.5, 1, 2, 3]}}])
def test_another_architecture_is_refused_where_the_classes_differ_too(changes: dict[str, object]) -> None:
    """Their outputs are put in the order of the model's classes first."""
    content = {"model": tiny(0, classes=2, **changes).state_dict(), "classes": ["cat", "dog"]}
    with pytest.raises(InputError, match=r"source\.pt has shape .* for '(class|box)_head"):
        initialise(tiny(1, classes=3), content, "source.pt", STD, ["dog", "cow", "cat"])


def test_torchvision_weights_of_another_depth_are_refused() -> None:
    with pytest.raises(InputError, match="backbone"):
        initialise(tiny(0), torchvision_state(), "torchvision.pth", STD)


def test_weights_of_a_backbone_alone_are_known_for_what_they_are(tmp_path: Path) -> None:
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "start.pt")
    with pytest.raises(InputError, match=r"of a backbone alone; to use them, set model\.init_partial=true"):
        trainer(tmp_path, tmp_path / "start.pt")


def trainer(tmp_path: Path, init: Path, *words: str) -> Trainer:
    """What train.py builds; the set has two classes."""
    config = tmp_path / "config.yaml"
    config.write_text("data: {format: coco}\n")
    root = f"data.root={small_coco(tmp_path / 'set')}"
    return Trainer(load_config(config, [*TINY_MODEL, root, f"model.init={init}", *words]), "test")


@pytest.mark.parametrize("wrapped", [False, True], ids=["state dict", "checkpoint"])
def test_model_init_reads_a_file(tmp_path: Path, wrapped: bool) -> None:
    source = tiny(3, classes=2).state_dict()
    torch.save({"model": source, "epoch": 1} if wrapped else source, tmp_path / "start.pt")
    model = trainer(tmp_path, tmp_path / "start.pt").learner.model
    assert model.pyramid.p7.weight.equal(source["pyramid.p7.weight"])
    assert model.class_head.output.weight.equal(source["class_head.output.weight"])


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(3)],
        torch.zeros(3),
        {"a": 1},
        {},
        {"model": None},
        {1: torch.zeros(3)},
        {"a": torch.zeros(3).to_sparse()},
        {name: value.to("meta") for name, value in tiny(3, classes=2).state_dict().items()},
        {name: value.to(torch.int8) for name, value in tiny(3, classes=2).state_dict().items()},
        {name: value.to(torch.complex64) for name, value in tiny(3, classes=2).state_dict().items()},
    ],
)
def test_model_init_refuses_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "start.pt")
    with pytest.raises(InputError, match=r"start\.pt"):
        trainer(tmp_path, tmp_path / "start.pt")


@pytest.mark.parametrize(
    ("changes", "afresh"),
    [
        ({}, ()),
        ({"anchors": {"ratios": [1.0]}}, ("class_head.output.", "box_head.output.")),
        ({"head_width": 24}, ("class_head.", "box_head.")),
        ({"head_depth": 2}, ("class_head.", "box_head.")),
        ({"head_norm": "group"}, ("class_head.", "box_head.")),
        ({"p6_from": "p5"}, ("pyramid.",)),
        ({"pyramid_channels": 24}, ("pyramid.", "class_head.", "box_head.")),
    ],
)
@pytest.mark.parametrize("swapped", [False, True], ids=["model differs", "file differs"])
def test_of_another_architecture_the_parts_that_fit_are_taken(
    changes: dict[str, object], afresh: tuple[str, ...], swapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, source = tiny(1, **changes), tiny(0)
    if swapped:
        model, source = source, model
    before, given = weights(model), weights(source)
    with caplog.at_level(logging.WARNING):
        initialise(model, source.state_dict(), "source.pt", STD, partial=True)
    for name, tensor in weights(model).items():
        expected = before if afresh and name.startswith(afresh) else given
        assert tensor.equal(expected[name]), name
    assert len(caplog.messages) == bool(afresh)
    if afresh:
        assert all(part.removesuffix(".") in caplog.messages[0] for part in afresh)


def test_classes_keep_their_outputs_where_other_parts_start_afresh() -> None:
    source, model = tiny(0, classes=2), tiny(1, classes=2, pyramid_channels=16, p6_from="p5")
    content = {"model": source.state_dict(), "classes": ["cat", "dog"]}
    initialise(model, content, "source.pt", STD, ["dog", "cat"], partial=True)
    mine, its = (m.class_head.output.bias.view(-1, 2) for m in (model, source))
    assert mine.equal(its.flip(1))


@pytest.mark.parametrize("partial", [False, True])
def test_as_many_anchors_of_other_sizes_are_told(partial: bool, caplog: pytest.LogCaptureFixture) -> None:
    """For a checkpoint, which records its anchors."""
    source, model = tiny(0), tiny(1)
    now = ModelConfig(**TINY).model_dump(mode="json")
    for factor in (1, 2):
        sizes = [[factor * side for side in level] for level in now["anchors"]["sizes"]]
        then = now | {"anchors": now["anchors"] | {"sizes": sizes}}
        content = {"model": source.state_dict(), "config": {"model": then}}
        caplog.clear()
        before = weights(model)
        initialise(model, content, "source.pt", STD, settings=now, partial=partial)
        kept = [n for n, t in weights(model).items() if not t.equal(weights(source)[n])]
        assert bool(caplog.messages) == (factor == 2)
        if factor == 2 and partial:
            assert {n.rpartition(".")[0] for n in kept} == {"class_head.output", "box_head.output"}
            assert all(weights(model)[n].equal(before[n]) for n in kept)
            assert "does not fit class_head.output, box_head.output, which start afresh" in caplog.text
        else:
            assert kept == []
        model = tiny(1)
    assert partial or "was trained with other anchors" in caplog.text
    for strange in ({"ratios": [1]}, {"sizes": [[1], [2, 3]], "ratios": [1]}):
        content = {"model": source.state_dict(), "config": {"model": now | {"anchors": strange}}}
        initialise(tiny(1), content, "source.pt", STD, settings=now, partial=partial)


@pytest.mark.parametrize("factor", [1, 1.2])
def test_torchvision_has_learnt_with_its_own_anchors(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    """Its files do not say which. The published sizes, with fractions of pixels, count as equal to them."""
    sizes = [[factor * side * 2 ** (k / 3) for k in range(3)] for side in (32, 64, 128, 256, 512)]
    settings = {"norm": "frozen", "p6_from": "p5", "anchors": {"sizes": sizes, "ratios": [0.5, 1.0, 2.0]}}
    for partial in (False, True):
        config, state = ModelConfig(**settings), torchvision_state()
        torch.manual_seed(12345)  # another seed: the same one would give the weights of torchvision
        model = build_model(config, 4, pretrained=False)
        caplog.clear()
        initialise(model, state, "coco.pth", STD, settings=config.model_dump(), partial=partial)
        taken = model.class_head.output.weight.equal(state["head.classification_head.cls_logits.weight"])
        assert taken == (factor == 1 or not partial)
        said = "which start afresh" if partial else "was trained with other anchors"
        assert (said in caplog.text) == (factor != 1)


def test_p6_from_elsewhere_is_told_where_no_shape_tells_it() -> None:
    """The pyramid has as many channels as C5."""
    source, model = (tiny(k, pyramid_channels=64, p6_from=p) for k, p in enumerate(("c5", "p5")))
    settings = ModelConfig(**{**TINY, "pyramid_channels": 64, "p6_from": "p5"}).model_dump()
    content = {"model": source.state_dict(), "config": {"model": {**settings, "p6_from": "c5"}}}
    before = weights(model)
    with pytest.raises(
        InputError,
        match=r"source\.pt was trained with model\.p6_from=c5; that run has 'model\.p6_from=\"c5\"'",
    ):
        initialise(model, content, "source.pt", STD, settings=settings)
    initialise(model, content, "source.pt", STD, settings=settings, partial=True)
    after = weights(model)
    assert after["pyramid.p6.weight"].equal(before["pyramid.p6.weight"])
    assert after["class_head.output.weight"].equal(weights(source)["class_head.output.weight"])


def test_partial_is_not_recommended_where_the_backbone_differs() -> None:
    for changes, helps in (({"norm": "group"}, False), ({"head_width": 24}, True)):
        with pytest.raises(InputError) as caught:
            initialise(tiny(0, **changes), tiny(1).state_dict(), "source.pt", STD)
        assert ("model.init_partial" in str(caught.value)) == helps


def test_as_many_outputs_of_other_anchors_are_not_taken() -> None:
    source, model = (
        tiny(0, classes=2),
        tiny(1, classes=6, anchors={"sizes": [[s] for s in (9, 18, 36, 72, 144)]}),
    )
    before = weights(model)
    assert before["class_head.output.bias"].shape == source.class_head.output.bias.shape
    initialise(model, source.state_dict(), "source.pt", STD, partial=True)
    assert weights(model)["class_head.output.weight"].equal(before["class_head.output.weight"])


def test_a_backbone_alone_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(3)
    given = resnet18(weights=None).state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in given.items()}}, tmp_path / "a.pt"
    )
    with caplog.at_level(logging.WARNING):
        words = ("model.init_partial=true", "model.base_channels=64")
        learner = trainer(tmp_path, tmp_path / "a.pt", *words).learner
    body = learner.model.backbone.body.state_dict()
    assert body and all(tensor.equal(given[name]) for name, tensor in body.items())
    assert any("pyramid, class_head.tower" in message for message in caplog.messages)


@pytest.mark.parametrize("changes", [{"backbone": "resnet34"}, {"norm": "group"}])
def test_another_backbone_is_refused_all_the_same(changes: dict[str, object]) -> None:
    model = tiny(1, base_channels=64, **changes)
    before = weights(model)
    for content in (tiny(0, base_channels=64).state_dict(), resnet18(weights=None).state_dict()):
        with pytest.raises(
            InputError, match=r"backbone.* with model\.init_partial the backbone must still fit"
        ):
            initialise(model, content, "source.pt", STD, partial=True)
    assert all(tensor.equal(before[name]) for name, tensor in weights(model).items())
