"""Losses for the classification of anchors (ranking and focal) and for their boxes."""

from detector.losses.ap import NonFiniteLogits, ap_loss
from detector.losses.boxes import giou_loss, smooth_l1_loss
from detector.losses.focal import focal_loss

__all__ = ["NonFiniteLogits", "ap_loss", "focal_loss", "giou_loss", "smooth_l1_loss"]
