"""Weights published by torchvision: fetched at first use, and kept in torch's download cache."""

import contextlib
import http.client
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torchvision.models import WeightsEnum
from torchvision.models.detection import RetinaNet_ResNet50_FPN_V2_Weights, RetinaNet_ResNet50_FPN_Weights

from detector.memory import is_out_of_memory
from errors import InputError, first_line

# Values of model.init besides files: torchvision's RetinaNet, trained on COCO.
COCO: dict[str, WeightsEnum] = {
    "coco": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    "coco_v2": RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1,
}

# Raised by connections, and by files that are damaged or hold something else.
_LOADING_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    ImportError,
    http.client.HTTPException,
    EOFError,
    KeyError,
    AttributeError,
    TypeError,
    pickle.UnpicklingError,
)


def coco_weights(name: str) -> dict[str, Any]:
    """The state dict of one of the entries of COCO.

    Raises:
        InputError: it cannot be fetched, or the cached file holds something else.
    """
    weights = COCO[name]
    whose = f"torchvision's COCO weights '{name}'"
    with fetching(weights, "model.init", whose, "set model.init to a file that you have, or null"):
        return state_dict_of(weights)


def state_dict_of(weights: WeightsEnum) -> dict[str, Any]:
    """The state dict of these weights, fetched or cached; other objects in the file are not unpickled, as
    they could run code.

    Raises:
        TypeError: it is not a state dict. Fetching and reading raise other errors; see `fetching`.
    """
    state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(one, torch.Tensor) for one in state.values()):
        raise TypeError("it is not a state dict")
    return state


@contextlib.contextmanager
def fetching(weights: WeightsEnum, key: str, whose: str, otherwise: str) -> Iterator[None]:
    """Turn errors while weights are fetched and used into one line.

    Args:
        key: the configuration key that requests the weights.
        whose: a description of the weights.
        otherwise: what the user can do without them.

    Raises:
        InputError: the weights cannot be fetched, or the cached file holds something else.
    """
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    there = False
    try:
        there = kept.exists()  # torch checks only what it fetches, not a file that somebody put there
        yield
    except _LOADING_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        if isinstance(error, OSError) and not isinstance(error, URLError) and (there or error.filename):
            raise InputError(
                f"{key}: {error.filename or kept} cannot be read or written ({error.strerror or reason}); "
                f"fix that, set TORCH_HOME to another folder, or {otherwise}"
            ) from None
        if there:
            raise InputError(
                f"{key}: {kept} does not contain {whose} ({reason}); delete it or put {weights.url} there, "
                f"or {otherwise}"
            ) from None
        raise InputError(
            f"{key}: {whose} could not be downloaded ({reason}); connect to the internet once, put "
            f"{weights.url} into {kept.parent}, or {otherwise}"
        ) from None
