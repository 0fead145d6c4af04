"""Starting weights from elsewhere: torchvision's RetinaNet, or a checkpoint of this project."""

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from detector.retinanet import RetinaNet
from errors import InputError

log = logging.getLogger(__name__)

# torchvision's retinanet_resnet50_fpn(_v2) -> ours. The towers differ only by how layers are counted.
_RENAMED = (
    (r"backbone\.body\.(.+)", r"backbone.body.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"pyramid.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"pyramid.output.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.p([67])\.(weight|bias)", r"pyramid.p\1.\2"),
    (r"head\.classification_head\.cls_logits\.(weight|bias)", r"class_head.output.\1"),
    (r"head\.regression_head\.bbox_reg\.(weight|bias)", r"box_head.output.\1"),
)
_TOWER = re.compile(r"head\.(classification|regression)_head\.conv\.(\d+)\.(?:([01])\.)?(weight|bias)")


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the weights of a torchvision RetinaNet (v1 or v2, any ResNet).

    Raises:
        InputError: a name is not one of torchvision's RetinaNet.
    """
    ours = {_our_name(name, state): tensor for name, tensor in state.items()}
    # Version 2 has group norm behind the towers' convolutions, which have no bias of their own there.
    for name, tensor in list(ours.items()):
        bias = name.removesuffix("weight") + "bias"
        if ".tower." in name and tensor.dim() == 4 and bias not in ours:
            ours[bias] = tensor.new_zeros(len(tensor))
    return ours


def _our_name(name: str, state: Mapping[str, Tensor]) -> str:
    tower = _TOWER.fullmatch(name)
    if tower:
        head = "class_head" if tower[1] == "classification" else "box_head"
        normed = f"head.{tower[1]}_head.conv.0.1.weight" in state
        nested = tower[3] is not None  # each layer of its own Sequential: conv, (norm,) relu
        layer = int(tower[2])
        position = layer * (3 if normed else 2) + int(tower[3]) if nested else layer
        return f"{head}.tower.{position}.{tower[4]}"
    for pattern, ours in _RENAMED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    raise InputError(f"'{name}' is not a weight of torchvision's RetinaNet")


def initialise(model: RetinaNet, content: object, source: str, box_std: Tensor) -> None:
    """Start from the weights of a torchvision RetinaNet or of a checkpoint of this project.

    The output of the class head is left as it is where the number of classes differs.

    Args:
        content: of the file: a state dict, or a checkpoint, whose "model" is one.
        source: names the weights in errors.
        box_std: the model's, float [4], as in `boxes.decode`. Deltas that were learned for another are
            scaled to it.

    Raises:
        InputError: the weights are of another architecture; the first difference is named.
    """
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"model.init: {source} holds no state dict (names with tensors)")
    learned_for = _box_std_of(content)
    if any(name.startswith("head.") for name in state):
        state, learned_for = from_torchvision(state), torch.ones(4)
    if learned_for is not None:
        state = _with_deltas_scaled(state, learned_for / box_std)
    own = model.state_dict()
    left_out = []
    for name in ("class_head.output.weight", "class_head.output.bias"):
        if name in state and state[name].shape != own[name].shape:
            left_out.append(name)
    wanted = [n for n in own if n not in left_out and not n.endswith("num_batches_tracked")]
    for name in wanted:
        if name not in state or state[name].shape != own[name].shape:
            has = f"shape {tuple(state[name].shape)}" if name in state else "nothing"
            raise InputError(
                f"model.init: {source} has {has} for '{name}', this model wants {tuple(own[name].shape)}; "
                f"set model.* to the architecture of the file"
            )
    extra = [n for n in state if n not in own and not n.endswith("num_batches_tracked")]
    if extra:
        raise InputError(
            f"model.init: {source} has '{extra[0]}', which this model does not; "
            f"set model.* to the architecture of the file"
        )
    if left_out:
        log.warning("%s has another number of classes: the class head's output starts afresh", source)
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(state[name])


def _box_std_of(content: object) -> Tensor | None:
    """What a checkpoint says of its deltas; None where it says nothing."""
    for key in ("config", "model", "box_std"):
        if not isinstance(content, Mapping) or key not in content:
            return None
        content = content[key]
    return torch.tensor(content)


def _with_deltas_scaled(state: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    scaled = dict(state)
    for name in ("box_head.output.weight", "box_head.output.bias"):
        if name in scaled:  # [anchors * 4, ...]
            each = scaled[name].unflatten(0, (-1, 4))
            scaled[name] = (each.transpose(1, -1) * factors).transpose(1, -1).flatten(0, 1)
    return scaled
