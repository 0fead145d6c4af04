"""Losses for the classification of anchors (ranking and focal) and for their boxes."""

from detector.losses.ap import ap_loss

__all__ = ["ap_loss"]
