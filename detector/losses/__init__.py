"""Losses for the classification of anchors (ranking and not) and for their boxes."""

from detector.losses.alrp import alrp_loss
from detector.losses.ap import ap_loss
from detector.losses.batch_ranking import NonFiniteLogits
from detector.losses.boxes import giou_errors, smooth_l1_errors
from detector.losses.by_class import class_alrp_loss, class_ap_loss, class_rank_sort_loss_of
from detector.losses.exchange import Exchange
from detector.losses.focal import focal_loss
from detector.losses.ohem import ce_ohem_loss
from detector.losses.rank_sort import rank_sort_loss, rank_sort_loss_of

__all__ = [
    "Exchange",
    "NonFiniteLogits",
    "alrp_loss",
    "ap_loss",
    "ce_ohem_loss",
    "class_alrp_loss",
    "class_ap_loss",
    "class_rank_sort_loss_of",
    "focal_loss",
    "giou_errors",
    "rank_sort_loss",
    "rank_sort_loss_of",
    "smooth_l1_errors",
]
