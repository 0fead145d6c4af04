"""The bounds of a configuration's values: the last one that is allowed, the first that is not."""

import pytest

from detector.config import Config
from detector.config.file import apply_overrides, parse_config
from errors import InputError


def config_of(*words: str) -> Config:
    return parse_config(apply_overrides({}, list(words)), "the test")


@pytest.mark.parametrize("key", ["optimizer.lr", "optimizer.clip_norm", "loss.box_weight"])
def test_no_number_is_infinite(key: str) -> None:
    """Infinity is above all lower bounds, but the first step would not be finite."""
    with pytest.raises(InputError, match=rf"{key}: .*finite"):
        config_of(f"{key}=.inf")


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        # Tiles that overlap completely would never reach the end of an image.
        (("eval.tile=128", "eval.tile_overlap=128"), r"tile_overlap: 128 must be below tile, 128"),
        (("eval.tile=128", "eval.tile_overlap=127"), None),
        # Without a gap no anchor is ignored.
        (("matcher.negative_iou=0.5", "matcher.positive_iou=0.5"), None),
        (("matcher.negative_iou=0.51", "matcher.positive_iou=0.5"), r"negative_iou: 0\.51 must not be above"),
        # 0 is the plain step; widths begin at 1e-6.
        (("loss.delta=0",), None),
        (("loss.delta=1e-6",), None),
        (("loss.delta=9e-7",), r"loss\.delta: must be 0 \(the plain step\) or from 1e-6 to 1e6"),
        (("loss.delta=1e6",), None),
        (("loss.delta=1.1e6",), r"loss\.delta: must be 0 \(the plain step\) or from 1e-6 to 1e6"),
    ],
)
def test_a_bound_is_where_it_is_said_to_be(words: tuple[str, ...], refused: str | None) -> None:
    if refused is None:
        config_of(*words)
        return
    with pytest.raises(InputError, match=refused):
        config_of(*words)
