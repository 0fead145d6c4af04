"""Starting weights from elsewhere: torchvision's RetinaNet, or a checkpoint of this project."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from detector.folding import BatchNorm, FrozenNorm
from detector.retinanet import RetinaNet
from errors import InputError

log = logging.getLogger(__name__)

# torchvision's retinanet_resnet50_fpn(_v2) -> ours. The towers differ only in how layers are numbered.
_RENAMED = (
    (r"backbone\.body\.(.+)", r"backbone.body.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"pyramid.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)", r"pyramid.output.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.p([67])\.(weight|bias)", r"pyramid.p\1.\2"),
    (r"head\.classification_head\.cls_logits\.(weight|bias)", r"class_head.output.\1"),
    (r"head\.regression_head\.bbox_reg\.(weight|bias)", r"box_head.output.\1"),
)
OF_TRAINING = ("pretrained", "init", "init_partial", "frozen_stages")  # keys of model.* that change no output
_NO_ARCHITECTURE = (*OF_TRAINING, "box_std")
_CLASS_OUTPUT = ("class_head.output.weight", "class_head.output.bias")
# Groups of parts in network order: a part is kept only if all parts before it in its group are kept.
_PARTS = (
    ("pyramid",),
    ("class_head.tower", "class_head.output"),
    ("box_head.tower", "box_head.output"),
)
# Truncated to whole pixels in torchvision; the published sizes, within 2 % of these, count as the same.
_TORCHVISION_ANCHORS = {
    "sizes": [[side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))] for side in (32, 64, 128, 256, 512)],
    "ratios": [0.5, 1.0, 2.0],
}
_SAME_SIDE = 0.05
_TOWER = re.compile(r"head\.(classification|regression)_head\.conv\.(\d+)\.(?:([01])\.)?(weight|bias)")


def from_torchvision(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Our names for the weights of a torchvision RetinaNet (v1 or v2, any ResNet).

    Args:
        source: names the weights in errors.

    Raises:
        InputError: a name is not one of torchvision's RetinaNet.
    """
    ours = {_our_name(name, state, source): tensor for name, tensor in state.items()}
    # In version 2 the towers' convolutions are followed by group norm and have no bias.
    for name, tensor in list(ours.items()):
        bias = name.removesuffix("weight") + "bias"
        if ".tower." in name and tensor.dim() == 4 and bias not in ours:
            ours[bias] = tensor.new_zeros(len(tensor))
    return ours


def _our_name(name: str, state: Mapping[str, Tensor], source: str) -> str:
    tower = _TOWER.fullmatch(name)
    if tower:
        head = "class_head" if tower[1] == "classification" else "box_head"
        normed = f"head.{tower[1]}_head.conv.0.1.weight" in state
        nested = tower[3] is not None  # each layer is a Sequential: conv, (norm,) relu
        layer = int(tower[2])
        position = layer * (3 if normed else 2) + int(tower[3]) if nested else layer
        return f"{head}.tower.{position}.{tower[4]}"
    for pattern, ours in _RENAMED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    raise InputError(f"model.init: {source} has '{name}', which is not a weight of torchvision's RetinaNet")


def initialise(
    model: RetinaNet,
    content: object,
    source: str,
    box_std: Tensor,
    classes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> None:
    """Start from the weights of a torchvision RetinaNet or of a checkpoint of this project.

    If the classes of the file are known (from a checkpoint; torchvision's 91 outputs are COCO's), the class
    head keeps the outputs of classes with the same names and the others start afresh. If they are unknown,
    all outputs start afresh when their number differs.

    Args:
        content: content of the file: a state dict, or a checkpoint with one as "model".
        source: names the weights in errors.
        box_std: the model's, float [4], as in `boxes.decode`. Deltas learned for another one are rescaled.
        classes: the model's class names; without them only their number counts.
        settings: the model's settings by configuration key, to name those in which a checkpoint differs.
        partial: let the pyramid and heads start afresh if they do not fit or are missing, as in the weights
            of a backbone alone (under torchvision's names).

    Raises:
        InputError: the architecture differs (with `partial`, that of the backbone); the first difference is
            named.
    """
    state, known = _translated(content, source, box_std, _eps_of(model))
    own = model.state_dict()
    if known and classes and list(known) != list(classes):
        state = _with_classes(state, known, own, classes)
    theirs, mine = _anchors_of(content), (settings or {}).get("anchors")
    moved = theirs is not None and mine is not None and not _alike(theirs, mine)
    # Shapes do not reveal this if the pyramid has as many channels as C5.
    p6_from = _model_config(content).get("p6_from")
    other_p6 = p6_from is not None and p6_from != (settings or {}).get("p6_from", p6_from)
    if partial:
        state = _with_own_parts(state, own, source, moved, other_p6)
    elif moved:
        log.warning(
            "%s was trained with other anchors (%s), so its box sizes are wrong at first; to start those "
            "outputs afresh, set model.init_partial=true", source, _in_short(theirs),
        )  # fmt: skip
    left_out = [n for n in _CLASS_OUTPUT if n in state and state[n].shape != own[n].shape]
    wanted = [n for n in own if n not in left_out and not n.endswith("num_batches_tracked")]
    architecture = _settings_of(content, settings or {}) or (
        "set model.* to the architecture of the file (configs/torchvision_r50.yaml: torchvision's RetinaNet, "
        "with model.p6_from=c5 model.head_norm=group its version 2)"
    )
    afresh_instead = ", or set model.init_partial=true to start what does not fit afresh"
    if partial:
        remedy = (
            "with model.init_partial the backbone must still fit: set model.backbone, model.base_channels "
            "and model.norm to those of the file"
        )
    elif "conv1.weight" in state:
        remedy = "these are the weights of a backbone alone; to use them, set model.init_partial=true"
    else:
        remedy = architecture + (afresh_instead if _backbones_agree(state, own) else "")
    _check_architecture(state, own, wanted, source, remedy)
    if other_p6 and not partial:
        raise InputError(
            f"model.init: {source} was trained with model.p6_from={p6_from}; {architecture}{afresh_instead}"
        )
    afresh = [name for name in classes if name not in known] if known else []
    if left_out:
        log.warning("%s has another number of classes, so the output of the class head starts afresh", source)
    elif afresh:
        few = ", ".join(afresh[:5]) + f" and {len(afresh) - 5} more" * (len(afresh) > 5)
        which = "any of the" if len(afresh) == len(classes) else "the"
        log.warning("%s does not know %s classes %s, so their outputs start afresh", source, which, few)
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(state[name])


def _translated(
    content: object, source: str, box_std: Tensor, eps: float
) -> tuple[Mapping[str, Tensor], Sequence[str]]:
    """The weights of a file under our names, for our box_std and eps; and its classes, if known."""
    state = _state_dict(content)
    if state is None:
        raise InputError(f"model.init: {source} contains no state dict (names with dense tensors)")
    learned_for = _box_std_of(content)
    theirs = _is_torchvisions(state)
    if theirs:
        state, learned_for = from_torchvision(state, source), torch.ones(4)
    known = _classes_of(content, state)
    if theirs and known and not any(".tower.1.weight" in name for name in state):
        state = _with_norms_of_no_eps(state, eps)
    if learned_for is not None:
        state = _with_deltas_scaled(state, learned_for / box_std)
    return state, known


def _state_dict(content: object) -> Mapping[str, Tensor] | None:
    """The state dict in a file: as "model" (ours, torchvision's references), "state_dict" or at the top."""
    if not isinstance(content, Mapping):
        return None
    places = (content.get("model"), content.get("state_dict"), content)
    state = next((one for one in places if isinstance(one, Mapping) and _holds_tensors(one)), None)
    # Prefixes of DistributedDataParallel, torch.compile and Lightning, which may be nested.
    wrappers = ("module.", "_orig_mod.", "model.")
    while state and any(all(str(name).startswith(one) for name in state) for one in wrappers):
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state


def _is_torchvisions(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of torchvision's RetinaNet."""
    return any(name.startswith("head.") for name in state)


def _in_short(values: Any) -> str:
    """Plain values as JSON, floats with four significant digits."""
    return json.dumps(json.loads(json.dumps(values), parse_float=lambda text: float(f"{float(text):.4g}")))


def _anchors_of(content: object) -> Mapping[str, Any] | None:
    """The `model.anchors` that a file was trained with; None if unknown."""
    told = _model_config(content).get("anchors")
    if told is None and _is_torchvisions(_state_dict(content) or {}):
        return _TORCHVISION_ANCHORS
    return told if isinstance(told, Mapping) else None


def _alike(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether both have the same number of anchors, with nearly the same sizes and ratios."""
    for key in ("sizes", "ratios"):
        try:
            one, other = (torch.tensor(anchors[key], dtype=torch.float64) for anchors in (theirs, mine))
        except (KeyError, ValueError, TypeError):  # written by another program
            return False
        if one.shape != other.shape or not torch.allclose(one, other, rtol=_SAME_SIDE, atol=0):
            return False
    return True


def _with_own_parts(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    source: str,
    other_anchors: bool,
    other_p6: bool,
) -> dict[str, Tensor]:
    """The weights, with the model's own in place of parts that do not fit or are missing.

    Args:
        other_anchors: the anchors differ, so no output fits, even with the same number of them.
        other_p6: P6 was learnt from another level, so the pyramid does not fit, even with the same shapes.
    """
    if "conv1.weight" in state:
        state = {f"backbone.body.{n}": t for n, t in state.items() if not n.startswith("fc.")}
    mixed, afresh = dict(state), []
    # With another number of anchors, the same number of outputs means other classes.
    anchors = [len(one.get("box_head.output.bias", ())) for one in (state, own)]
    for parts in _PARTS:
        fits = True
        for part in parts:
            theirs, ours = (
                {n: t for n, t in one.items() if n.startswith(f"{part}.")} for one in (state, own)
            )
            fits &= anchors[0] == anchors[1] or part != "class_head.output"
            fits &= not (other_anchors and part.endswith(".output"))
            fits &= not (other_p6 and part == "pyramid")
            # `fits` stays False within a group: an output is useless after another tower.
            fits &= {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in ours.items()}
            if not fits:
                mixed = {n: t for n, t in mixed.items() if n not in theirs} | ours
                afresh.append(part)
    if afresh:
        log.warning("%s does not fit %s, which start afresh", source, ", ".join(afresh))
    return mixed


def _holds_tensors(state: Mapping[str, object]) -> bool:
    return all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type != "meta"
        for name, value in state.items()
    )


def _check_architecture(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], wanted: Sequence[str], source: str, remedy: str
) -> None:
    for name in wanted:
        if name not in state or state[name].shape != own[name].shape:
            has = f"shape {tuple(state[name].shape)}" if name in state else "nothing"
            wants = tuple(own[name].shape)
            raise InputError(
                f"model.init: {source} has {has} for '{name}', but this model needs {wants}; {remedy}"
            )
        if own[name].is_floating_point() and not state[name].is_floating_point():
            kind = str(state[name].dtype).removeprefix("torch.")
            raise InputError(f"model.init: {source} has {kind} numbers for '{name}'; they must be floats")
    extra = [n for n in state if n not in own and not n.endswith("num_batches_tracked")]
    if extra:
        raise InputError(f"model.init: {source} has '{extra[0]}', which this model does not have; {remedy}")


def _backbones_agree(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    shapes = [
        {n: t.shape for n, t in one.items() if n.startswith("backbone.") and not n.endswith("_tracked")}
        for one in (state, own)
    ]
    return shapes[0] == shapes[1]


def _settings_of(content: object, settings: Mapping[str, Any]) -> str:
    """How to get the architecture of a checkpoint if its settings differ from these; else ""."""
    theirs = _model_config(content)
    keys = [key for key in settings if key not in _NO_ARCHITECTURE and key in theirs]
    other = {f"model.{key}": theirs[key] for key in keys if theirs[key] != settings[key]}
    given = " ".join(f"'{key}={json.dumps(value)}'" for key, value in other.items())
    return f"that run has {given}" if given else ""


def _box_std_of(content: object) -> Tensor | None:
    """The box_std of a checkpoint; None if it has none."""
    config = _model_config(content)
    return torch.tensor(config["box_std"]) if "box_std" in config else None


def _model_config(content: object) -> Mapping[str, Any]:
    """The `model` section of the configuration in a checkpoint; empty for other files."""
    for key in ("config", "model"):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def _with_deltas_scaled(state: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    scaled = dict(state)
    for name in ("box_head.output.weight", "box_head.output.bias"):
        if name in scaled:  # [anchors * 4, ...]
            each = scaled[name].unflatten(0, (-1, 4))
            scaled[name] = (each.transpose(1, -1) * factors).transpose(1, -1).flatten(0, 1)
    return scaled


def _eps_of(model: RetinaNet) -> float:
    """The eps shared by the backbone's batch norms; 0 if there are none."""
    return next(
        (float(m.eps) for m in model.backbone.modules() if isinstance(m, BatchNorm | FrozenNorm)), 0.0
    )


def _with_norms_of_no_eps(state: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    """Compensate for eps in COCO_V1's norms: they were trained with 0, which torchvision sets for them."""
    # A smaller variance means a channel that never changes, and would be lost in the rounding of eps.
    return {n: t.clamp_min(1e-8) - eps if n.endswith("running_var") else t for n, t in state.items()}


def _classes_of(content: object, state: Mapping[str, Tensor]) -> Sequence[str]:
    """The class names of a file, one per output of an anchor; empty if unknown."""
    told = content.get("classes") if isinstance(content, Mapping) else None
    categories = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    coordinates, outputs = (len(state.get(f"{head}_head.output.bias", ())) for head in ("box", "class"))
    for names in (told, categories):
        # Another program's "classes" may be a number, or lack torchvision's background.
        if isinstance(names, list | tuple) and 4 * outputs == coordinates * len(names) > 0:
            return [str(name) for name in names]
    return ()


def _with_classes(
    state: Mapping[str, Tensor], known: Sequence[str], own: Mapping[str, Tensor], classes: Sequence[str]
) -> dict[str, Tensor]:
    """The outputs of `known` classes in the order of the model's `classes`; its own for unknown ones."""
    changed = dict(state)
    shared = [(i, known.index(name)) for i, name in enumerate(classes) if name in known]
    for name in _CLASS_OUTPUT:
        if name in state and len(state[name]) * len(classes) == len(own[name]) * len(known):
            theirs = state[name].unflatten(0, (-1, len(known)))  # [anchors, classes, ...]
            ours = own[name].clone().unflatten(0, (-1, len(classes)))
            if theirs.shape[2:] == ours.shape[2:]:
                for here, there in shared:
                    ours[:, here] = theirs[:, there]
                changed[name] = ours.flatten(0, 1)
    return changed
