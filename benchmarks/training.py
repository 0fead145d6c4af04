"""Claim: training is at least as fast as torchvision's RetinaNet on equal terms, and faster as shipped.

Complete optimizer steps (forward, loss, backward, update) of ResNet-50 detectors of 80 classes on random
pixels already in memory. torchvision's network is `retinanet_resnet50_fpn` as built for ImageNet weights
(frozen batch norm, three trained stages), but with random weights; it gets its images as float32 in [0, 1]
without the conversion being timed. Ours gets uint8 and does all that the trainer does in a step. On equal
terms both have the same architecture, anchors, weights and optimizer; the outputs are compared before
timing. Each is timed in its own process; ours is set up like that of train.py.
Run from the root of the repository: python -m benchmarks.training
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/training.py`

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.measure import (
    Call,
    Elsewhere,
    Timing,
    devices,
    in_turns,
    parser,
    peak_extra_bytes,
    progress,
    report,
    section,
)
from detector.builders.device import build_amp, cpu_is_fast_in_bf16
from detector.builders.losses import build_criterion
from detector.builders.network import build_model, memory_format
from detector.config import Config
from detector.config.file import load_config
from detector.criterion import GroundTruth
from detector.losses import Exchange
from detector.retinanet import RetinaNet
from detector.training.optimizer import build_optimizer
from detector.weights import initialise
from doors import keep_freed_memory

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "coco_r50_aploss.yaml"
CLASSES = 80
BOXES = 7  # per image: COCO's mean
LR = 1e-6  # there is nothing to learn from noise; the time of a step does not depend on it

SHIPPED = ["model.pretrained=false", f"optimizer.lr={LR}"]
# Settings with which our network is the one that torchvision builds.
EQUAL = [
    *SHIPPED,
    "model.p6_from=p5",
    "model.anchors.sizes=[[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]]",
]
HEADER = (
    "terms",
    "precision",
    "layout",
    "ours, images/s",
    "torchvision, images/s",
    "ours / torchvision",
    "peak memory, ours / its",
)
NOTE = (
    "{batch} images of {size} x {size} px and {boxes} gt boxes each. Images per second: by the median "
    "step, and half the interquartile range in per cent; the two run in turns, each in its own process, "
    "and the ratio is the median over the turns. Peak memory: of all tensors created in a step. Layout: "
    "the memory format in which the backbone's features were found, ours / torchvision's where they "
    "differ. 'equal': the same architecture, weights and optimizer, without torchvision's resizing; "
    "each has its own loss (AP-loss, focal). 'as shipped': configs/coco_r50_aploss.yaml against "
    "torchvision's defaults."
)


@dataclass(frozen=True)
class Data:
    """One batch of noise."""

    images: Tensor  # uint8 [B, 3, H, W], channels last in memory as the loader gives it
    sizes: Tensor  # int64 [B, 2]
    gt: GroundTruth


@dataclass(frozen=True)
class Contestant:
    """A network and its training step."""

    network: nn.Module
    step: Callable[[], None]

    def layout(self) -> str:
        """The memory format of the backbone's last features, in a training step."""
        found = []
        body = self.network.get_submodule("backbone.body.layer4")
        hook = body.register_forward_hook(lambda module, given, features: found.append(features))
        self.step()
        hook.remove()
        return "channels_last" if found[0].is_contiguous(memory_format=torch.channels_last) else "contiguous"


def make_data(batch: int, size: int, device: torch.device) -> Data:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)
    sides = size / 16 + torch.rand(batch, BOXES, 2, generator=generator) * size * 7 / 16
    corner = torch.rand(batch, BOXES, 2, generator=generator) * (size - sides)
    valid = torch.ones(batch, BOXES, dtype=torch.bool, device=device)
    return Data(
        pixels.permute(0, 3, 1, 2).to(device),
        torch.full((batch, 2), size, device=device),
        GroundTruth(
            torch.cat((corner, corner + sides), dim=-1).to(device),
            torch.randint(0, CLASSES, (batch, BOXES), generator=generator).to(device),
            valid,
            ~valid,
        ),
    )


def build_ours(config: Config, data: Data, device: torch.device) -> Contestant:
    """Our model and the trainer's step."""
    torch.manual_seed(0)
    model = build_model(config.model, CLASSES, pretrained=False).to(device)
    _level(model)
    model = model.to(memory_format=memory_format(config.train, device)).train()
    criterion = build_criterion(config, device, Exchange())
    optimizer = _optimizer(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    amp = build_amp(config.train, device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, amp or torch.bfloat16, enabled=amp is not None):
            matched = criterion.match(model(data.images, data.sizes, boxes_later=True), data.gt)
        losses = criterion([matched])
        _check_finite(losses.total)
        losses.total.backward()
        nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])  # the trainer logs it
        optimizer.step()

    return Contestant(model, step)


def build_peer(config: Config, data: Data, device: torch.device, shipped: bool) -> Contestant:
    """torchvision's model and the step of its reference scripts.

    Args:
        config: provides precision, layout and optimizer, unless `shipped`.
        shipped: use torchvision's defaults: float32, contiguous, torch's plain SGD.
    """
    torch.manual_seed(0)
    size = data.images.shape[-1]
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = TorchvisionRetinaNet(backbone, CLASSES, min_size=size, max_size=size, _skip_resize=not shipped)
    _level(model)
    layout = torch.contiguous_format if shipped else memory_format(config.train, device)
    model = model.to(device).to(memory_format=layout).train()
    if shipped:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, LR, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = _optimizer(model, config)
    images = as_floats(data)
    targets = [
        {"boxes": boxes, "labels": labels}
        for boxes, labels in zip(data.gt.boxes, data.gt.labels, strict=True)
    ]
    amp = None if shipped else build_amp(config.train, device)

    def step() -> None:
        with torch.autocast(device.type, amp or torch.bfloat16, enabled=amp is not None):
            total = sum(model(images, targets).values())
        _check_finite(total)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return Contestant(model, step)


def build_pair(
    config: Config, data: Data, device: torch.device, shipped: bool
) -> tuple[Contestant, Contestant]:
    """Ours and the peer, with equal weights unless `shipped`."""
    ours, peer = build_ours(config, data, device), build_peer(config, data, device, shipped)
    if not shipped:
        make_equal(ours, peer, data)
    return ours, peer


def our_step(config: Config, data: Data, device: torch.device, shipped: bool) -> Call:
    return build_pair(config, data, device, shipped)[0].step


def peer_step(config: Config, data: Data, device: torch.device, shipped: bool) -> Call:
    return build_peer(config, data, device, shipped).step


def timed_apart(
    ours: Callable[..., Call],
    peer: Callable[..., Call],
    config: Config,
    data: Data,
    repeats: int,
    device: torch.device,
    shipped: bool,
    pairs: int = 1,
) -> dict[str, Timing]:
    """Time both on the same data, in turns, each in its own process.

    Args:
        ours, peer: importable functions of configuration, data, device and `shipped` that return the call to
            time. Each builds its network anew, from the same seed.
        repeats: turns per pair of processes.
        pairs: number of pairs of processes, one after another. The memory layout of a process is random, and
            on a CPU it changes torchvision's time by up to a fifth for the lifetime of the process.
    """
    setting = (config, len(data.images), data.images.shape[-1], device)
    timings: list[dict[str, Timing]] = []
    for _ in range(max(pairs, 1)):
        with (
            Elsewhere(_our_side, ours, *setting, shipped) as mine,
            Elsewhere(_peer_side, peer, *setting, shipped) as its,
        ):
            timings.append(in_turns({**mine.calls, **its.calls}, repeats, device))
    return {name: Timing(sum((one[name].seconds for one in timings), ())) for name in timings[0]}


def _our_side(
    make: Callable[..., Call], config: Config, batch: int, size: int, device: torch.device, shipped: bool
) -> dict[str, Call]:
    keep_freed_memory()  # as our programs do
    return {"ours": make(config, make_data(batch, size, device), device, shipped)}


def _peer_side(
    make: Callable[..., Call], config: Config, batch: int, size: int, device: torch.device, shipped: bool
) -> dict[str, Call]:
    return {"peer": make(config, make_data(batch, size, device), device, shipped)}


def make_equal(one: Contestant, other: Contestant, data: Data) -> None:
    """Give ours the peer's weights, and check that both are then the same network.

    Raises:
        SystemExit: they are not.
    """
    ours, peer = one.network, other.network
    assert isinstance(ours, RetinaNet) and isinstance(peer, TorchvisionRetinaNet)
    weights = {name: value.cpu() for name, value in peer.state_dict().items()}
    initialise(ours, weights, "torchvision", torch.ones(4))
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        mine = ours(data.images, data.sizes)
        images, _ = peer.transform(as_floats(data))
        features = list(peer.backbone(images.tensors).values())
        theirs = peer.head(features)
        anchors = peer.anchor_generator(images, features)[0]
    scale = theirs["cls_logits"].std()
    error = float((mine.logits - theirs["cls_logits"]).abs().max() / scale)
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, peer)]
    if error > 1e-2 or trained[0] != trained[1] or not torch.allclose(mine.anchors, anchors, atol=1e-3):
        sys.exit(f"error: not the same network: logits differ by {error:.1e} of their spread, {trained=}")


def _level(model: nn.Module) -> None:
    """Keep features at one scale, as ImageNet's norms do; with random weights they grow block by block."""
    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn3"):
            module.weight.fill_(0.2)


def as_floats(data: Data) -> list[Tensor]:
    return [image.contiguous().float() / 255 for image in data.images]


def _optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    o = config.optimizer
    return build_optimizer(model, o.name, o.lr, o.momentum, o.weight_decay, o.decay_norm_and_bias)


def _check_finite(loss: Tensor) -> None:
    if not torch.isfinite(loss):
        sys.exit("error: the loss is not finite, so the time of a step means nothing")


def precisions(config: Config, device: torch.device, shipped: bool) -> str:
    """Our precision, and torchvision's if it differs."""
    ours = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[build_amp(config.train, device)]
    return f"{ours} / fp32" if shipped else ours


def compared(timings: dict[str, Timing], memory: list[int], data: Data) -> list[str]:
    """Images per second of "ours" and "peer", their ratio, and the peak memory of both."""
    return [
        *(f"{len(data.images) / t.median_s:.2f} ± {100 * t.spread:.0f} %" for t in timings.values()),
        f"{timings['peer'].ratio_to(timings['ours']):.2f}",
        f"{memory[0] / 2**20:.0f} / {memory[1] / 2**20:.0f} MB",
    ]


def measure(
    terms: str, overrides: list[str], data: Data, steps: int, device: torch.device, shipped: bool = False
) -> list[str]:
    """One row of the table."""
    config = load_config(RECIPE, overrides)
    ours, peer = build_pair(config, data, device, shipped)
    layouts = [ours.layout(), peer.layout()]
    memory = []
    for one in (ours, peer):
        one.network.zero_grad(set_to_none=True)  # the two free old gradients at different points of a step
        memory.append(peak_extra_bytes(one.step, device))
    timings = timed_apart(our_step, peer_step, config, data, steps, device, shipped)
    precision = precisions(config, device, shipped)
    row = [terms, precision, " / ".join(dict.fromkeys(layouts)), *compared(timings, memory, data)]
    progress(f"{device}: " + "  ".join(row))
    return row


def main() -> None:
    options = parser("Training throughput against torchvision's RetinaNet.", repeats=10)
    options.add_argument("--steps", type=int, dest="repeats", help="the same as --repeats")
    options.add_argument("--size", type=int, default=512, help="height and width in px (%(default)s)")
    options.add_argument("--batch", type=int, default=2, help="images per step (%(default)s)")
    arguments = options.parse_args()
    if arguments.size < 96 or arguments.size % 32:
        # Up to 64 px P6 is a single cell, where oneDNN's bf16 gradients of P7's weights are wrong.
        options.error("--size: a multiple of 32 px from 96 on is wanted")
    note = NOTE.format(batch=arguments.batch, size=arguments.size, boxes=BOXES)
    sections = []
    for device in devices(arguments.device):
        data = make_data(arguments.batch, arguments.size, device)
        contiguous, channels_last = "train.channels_last=false", "train.channels_last=true"
        steps = arguments.repeats
        rows = [
            measure("equal", [*EQUAL, "train.amp='off'", contiguous], data, steps, device),
            measure("equal", [*EQUAL, "train.amp='off'", channels_last], data, steps, device),
            *(
                [measure("equal", [*EQUAL, "train.amp=bf16", channels_last], data, steps, device)]
                if device.type != "cpu" or cpu_is_fast_in_bf16()
                else []
            ),
            measure("as shipped", SHIPPED, data, steps, device, shipped=True),
        ]
        sections.append(section(f"Training: {device}", HEADER, rows, note))
    report(sections, arguments.output)


if __name__ == "__main__":
    main()
