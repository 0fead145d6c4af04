"""Our RetinaNet against torchvision's: the same weights, the same images, end to end."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.transforms.functional import normalize

from detector.builders.network import build_model
from detector.config import AnchorConfig, ModelConfig
from detector.postprocess import detect
from detector.retinanet import HeadOutputs, RetinaNet
from detector.weights import initialise

CLASSES = 5
# torchvision rounds its sizes down to whole pixels.
ANCHORS = AnchorConfig(
    sizes=[[s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))] for s in (32, 64, 128, 256, 512)]
)
ARCHITECTURE = {
    "v1": ModelConfig(p6_from="p5", norm="batch", frozen_stages=0, anchors=ANCHORS),
    "v2": ModelConfig(p6_from="c5", norm="frozen", frozen_stages=0, anchors=ANCHORS, head_norm="group"),
}
THEIRS = {"v1": retinanet_resnet50_fpn, "v2": retinanet_resnet50_fpn_v2}
LONG = 160
SIZES = torch.tensor([[100, LONG], [LONG, 122]])  # height, width: unequal, not multiples of 32
POSTPROCESS = {"score_thresh": 0.0, "nms_thresh": 0.5, "topk_candidates": 150, "detections_per_img": 100}


@dataclass(frozen=True)
class Pair:
    """The outputs of both models for the same two images."""

    ours: HeadOutputs
    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    detections: list[dict[str, Tensor]]


def randomise(model: TorchvisionRetinaNet) -> None:
    """Sets weights as if trained: norms with statistics of their own, outputs that spread."""
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                uniform(module.weight, 0.4, 0.8)
                uniform(module.bias, -0.2, 0.2)
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.running_mean, -0.2, 0.2)
                uniform(module.running_var, 0.5, 1.5)
        for module in [*model.backbone.fpn.modules(), *model.head.modules()]:
            if isinstance(module, nn.Conv2d):
                bound = (6 / module.weight[0].numel()) ** 0.5  # keeps the spread through a ReLU
                uniform(module.weight, -bound, bound)
                if module.bias is not None:
                    uniform(module.bias, -0.2, 0.2)
        model.head.regression_head.bbox_reg.weight.mul_(0.2)


def images() -> Tensor:
    """uint8 [2, 3, 160, 160], padded with 255 to show that padding does not reach the network."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.full((2, 3, LONG, LONG), 255, dtype=torch.uint8)
    for picture, (height, width) in zip(pictures, SIZES.tolist(), strict=True):
        noise = torch.randint(0, 256, (3, height // 8 + 1, width // 8 + 1), generator=generator)
        blocks = noise.repeat_interleave(8, 1).repeat_interleave(8, 2)
        picture[:, :height, :width] = blocks[:, :height, :width]
    return pictures


STD = torch.tensor([0.1, 0.1, 0.2, 0.2])  # the default; torchvision does not divide its deltas


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Both models in float64, so that only a difference in meaning can show."""
    torch.manual_seed(0)  # for the body, which randomise leaves as torchvision makes it
    # Both images are max_size long already: torchvision does not resize them.
    theirs = THEIRS[request.param](
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=1000, max_size=LONG, **POSTPROCESS
    )
    randomise(theirs)
    ours = build_model(ARCHITECTURE[request.param], CLASSES, pretrained=False)
    initialise(ours, theirs.state_dict(), "torchvision", STD)
    heads, anchors = [], []
    theirs.head.register_forward_hook(lambda module, args, output: heads.append(output))
    theirs.anchor_generator.register_forward_hook(lambda module, args, output: anchors.append(output[0]))
    pictures = [
        picture[:, :height, :width].double() / 255
        for picture, (height, width) in zip(images(), SIZES.tolist(), strict=True)
    ]
    with torch.no_grad():
        detections = theirs.double().eval()(pictures)
        outputs = ours.double().eval()(images(), SIZES)
    return Pair(outputs, heads[0]["cls_logits"], heads[0]["bbox_regression"], anchors[0], detections)


def test_head_outputs_equal_torchvisions(pair: Pair) -> None:
    assert pair.logits.std() > 0.5 and pair.deltas.std() > 0.05  # the comparison is not trivial
    torch.testing.assert_close(pair.ours.logits, pair.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(pair.ours.deltas * STD, pair.deltas, atol=1e-5, rtol=0)


def test_anchors_equal_torchvisions(pair: Pair) -> None:
    torch.testing.assert_close(pair.ours.anchors.double(), pair.anchors.double(), atol=0, rtol=0)
    assert sum(pair.ours.level_sizes) == len(pair.anchors)


def test_detections_equal_torchvisions(pair: Pair) -> None:
    found = detect(
        pair.ours,
        SIZES,
        box_std=STD,
        score_threshold=POSTPROCESS["score_thresh"],
        topk_candidates=POSTPROCESS["topk_candidates"],
        nms_threshold=POSTPROCESS["nms_thresh"],
        detections_per_img=POSTPROCESS["detections_per_img"],
    )
    for mine, theirs in zip(found, pair.detections, strict=True):
        # torchvision also keeps boxes in the padding, which have no area: NMS removes none of them.
        sides = theirs["boxes"][:, 2:] - theirs["boxes"][:, :2]
        labels, boxes, scores = (theirs[key][(sides > 0).all(1)] for key in ("labels", "boxes", "scores"))
        count = len(labels)
        assert 25 < count <= len(mine.labels)
        assert mine.labels[:count].tolist() == labels.tolist()
        torch.testing.assert_close(mine.boxes[:count].double(), boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(mine.scores[:count], scores, atol=1e-5, rtol=0)


def small_model() -> RetinaNet:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone="resnet18", norm="batch", pyramid_channels=16, head_width=16, head_depth=1, frozen_stages=0
    )
    return build_model(config, CLASSES, pretrained=False).eval()


def test_memory_format_does_not_change_the_outputs() -> None:
    model = small_model().double()
    with torch.no_grad():
        plain = model(images(), SIZES)
        last = model.to(memory_format=torch.channels_last)(images(), SIZES)
    torch.testing.assert_close(last.logits, plain.logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(last.deltas, plain.deltas, atol=1e-10, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pixels_are_normalised_as_by_torchvision_and_padding_is_0(memory_format: torch.memory_format) -> None:
    model = small_model().to(memory_format=memory_format)
    found = model.normalise(images(), SIZES)
    assert found.is_contiguous(memory_format=memory_format)
    for mine, pixels, (height, width) in zip(found, images(), SIZES.tolist(), strict=True):
        expected = torch.zeros(3, *pixels.shape[1:], dtype=torch.float64)
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        expected[:, :height, :width] = normalize(pixels[:, :height, :width].double() / 255, mean, std)
        torch.testing.assert_close(mine.double(), expected, atol=1e-6, rtol=0)


def test_an_image_is_told_apart_from_its_neighbours_in_the_batch() -> None:
    model = small_model().double()
    with torch.no_grad():
        together = model(images(), SIZES)
        alone = model(images()[1:], SIZES[1:])
    torch.testing.assert_close(alone.logits[0], together.logits[1], atol=1e-10, rtol=0)


def test_every_anchor_starts_at_the_prior() -> None:
    """The output layer's weights are small, so the first scores lie around the prior of 0.01."""
    with torch.no_grad():
        scores = small_model()(images(), SIZES).logits.sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01), atol=5e-3, rtol=0)
