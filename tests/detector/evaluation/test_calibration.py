"""Calibration against scores whose worth is known, and against a case computed by hand."""

import numpy as np
import pytest

from detector.evaluation.calibration import (
    Calibration,
    Matched,
    calibration_error,
    fit_calibration,
    held_out_error,
)


def overconfident(count: int = 20_000, scale: float = 3.0, shift: float = -4.0) -> tuple[Matched, np.ndarray]:
    """Detections whose logits are a line away from the truth, and the true probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, count)
    truth = 1 / (1 + np.exp(-logits))
    scores = 1 / (1 + np.exp(-(scale * logits + shift)))
    return Matched(scores, rng.random(count) < truth, np.arange(count) // 10), truth


@pytest.mark.parametrize(("scale", "shift"), [(3.0, -4.0), (0.1, 6.0), (1.0, -20.0)])
def test_the_probabilities_behind_the_scores_are_found_again(scale: float, shift: float) -> None:
    """A ranking loss may stretch and shift its logits as it likes."""
    matched, truth = overconfident(scale=scale, shift=shift)
    calibration = fit_calibration(matched)
    assert calibration is not None
    found = calibration(matched.scores)
    assert np.abs(found - truth).mean() < 0.02
    assert calibration_error(matched.scores, matched.correct) > 0.1
    assert calibration_error(found, matched.correct) < 0.02
    assert held_out_error(matched) < 0.02


def test_high_scores_are_worth_what_they_say_among_many_wrong_ones() -> None:
    """A detector gives its 100 best boxes of every image: nearly all of them are background, near 0."""
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(-9, 2, 40_000), rng.uniform(-3, 4, 1500)])
    truth = 1 / (1 + np.exp(-logits))
    matched = Matched(1 / (1 + np.exp(-0.5 * logits)), rng.random(len(truth)) < truth, np.arange(len(truth)))
    calibration = fit_calibration(matched)
    assert calibration is not None
    high = np.linspace(0.2, 0.97, 30)
    found = calibration(1 / (1 + np.exp(-0.5 * np.log(high / (1 - high)))))
    assert np.abs(found - high).max() < 0.08


@pytest.mark.parametrize("most", [0.3, 0.05])
def test_the_best_detections_of_a_poor_detector_are_promised_no_more_than_they_keep(most: float) -> None:
    """However high the score, so many are right; and the lowest scores are worth what the rest is."""
    rng = np.random.default_rng(1)
    logits = rng.normal(-1, 2, 5000)
    truth = most / (1 + np.exp(-2 * logits))
    matched = Matched(1 / (1 + np.exp(-logits)), rng.random(len(truth)) < truth, np.arange(len(truth)))
    calibration = fit_calibration(matched)
    assert calibration is not None
    found = calibration(matched.scores)
    assert found.max() < 1.5 * most
    assert np.abs(found - truth).mean() < 0.1 * most
    assert (np.diff(found[np.argsort(logits)]) > 0).all()


def test_a_few_detections_on_top_are_not_learnt_by_heart() -> None:
    """Of 194 three in ten are right, and so are the six that score above them: by chance, perhaps."""
    scores = np.append(np.linspace(0.1, 0.6, 194), np.linspace(0.8, 0.9, 6))
    correct = np.append(np.arange(194) % 10 < 3, np.ones(6, np.bool_))
    calibration = fit_calibration(Matched(scores, correct, np.arange(200)))
    assert calibration is not None
    assert calibration(np.array([0.9]))[0] < 0.7


@pytest.mark.parametrize("right", [5, 10, 15, 19, 20, 40])
def test_a_few_right_ones_that_are_well_apart_do_not_drown_among_the_wrong(right: int) -> None:
    """Of ten images, say, which a detector has learnt."""
    scores = np.concatenate((np.linspace(0.01, 0.1, 985), np.linspace(0.8, 0.9, right)))
    correct = np.arange(len(scores)) >= 985
    calibration = fit_calibration(Matched(scores, correct, np.arange(len(scores))))
    assert calibration is not None
    assert calibration(scores[correct]).min() > 0.55 and calibration(scores[correct]).mean() > 0.75
    assert calibration(scores[~correct]).mean() < 0.07


def test_a_few_right_ones_anywhere_promise_little() -> None:
    """Twelve of 600 at random: of the six best of each draw one or two may be right."""
    rng = np.random.default_rng(0)
    promised = []
    for _ in range(50):
        scores, correct = np.sort(rng.random(600)), rng.permutation(600) < 12
        calibration = fit_calibration(Matched(scores, correct, np.arange(600)))
        assert calibration is not None
        promised.append(calibration(scores[-1:])[0])
    assert np.mean(promised) < 0.15 and max(promised) < 0.5


def test_levels_that_are_joined_count_by_how_many_detections_they_have() -> None:
    """By hand: 900 with the lower score, half of them right, and 300 with the higher, a fifth of them."""
    scores = np.repeat([0.2, 0.8], [900, 300])
    correct = np.arange(1200) % 2 == 0
    correct[900:] = np.arange(300) % 5 == 0
    calibration = fit_calibration(Matched(scores, correct, np.arange(1200)))
    assert calibration is not None
    assert calibration(np.array([0.2, 0.8])) == pytest.approx([(450 + 60) / 1200] * 2, abs=0.01)


def test_where_a_score_says_nothing_all_are_promised_the_same() -> None:
    rng = np.random.default_rng(0)
    matched = Matched(rng.random(5000), rng.random(5000) < 0.2, np.arange(5000))
    calibration = fit_calibration(matched)
    assert calibration is not None
    found = calibration(matched.scores)
    assert np.abs(found - 0.2).max() < 0.1
    assert calibration_error(found, matched.correct) < 0.02


def test_held_out_error_is_that_of_a_map_fitted_to_the_other_images() -> None:
    """Every other image holds right detections only, the rest wrong ones, and all scores are equal.

    Each half teaches the opposite of what the other shows: to (30 + 1/2) / (30 + 1) or its complement.
    """
    images = np.arange(60) // 3
    matched = Matched(np.full(60, 0.7), images % 2 == 0, images)
    assert held_out_error(matched) == pytest.approx(30.5 / 31)


def test_the_inverse_gives_the_scores_back() -> None:
    """Between the knots and beyond them; 0 and 1 are what nothing but 0 and 1 is mapped to."""
    calibration = Calibration((-3.0, -1.0, 2.0), (0.1, 0.4, 0.9))
    scores = 1 / (1 + np.exp(-np.linspace(-12, 12, 400)))
    np.testing.assert_allclose(calibration.inverse(calibration(scores)), scores, rtol=2e-9)
    assert calibration.inverse(np.array([0.0, 1.0])) == pytest.approx([0, 1])


def test_the_inverse_keeps_the_detection_that_a_threshold_was_taken_from() -> None:
    scores = 1 / (1 + np.exp(-np.linspace(-12, 12, 20_000)))
    calibration = Calibration((-3.0, -1.0, 2.0), (0.1, 0.4, 0.9))
    thresholds = calibration.inverse(calibration(scores))
    assert np.searchsorted(scores, thresholds).tolist() == list(range(len(scores)))


@pytest.mark.parametrize("correct", [[False] * 500, [True] * 500, [k % 3 == 0 for k in range(500)]])
def test_order_is_kept_where_scores_are_dense_and_where_they_are_extreme(correct: list[bool]) -> None:
    rng = np.random.default_rng(0)
    scores = np.unique(np.concatenate([rng.random(490), 10.0 ** -np.arange(1, 11), [1e-60]]))[:500]
    calibration = fit_calibration(Matched(scores, np.array(correct[: len(scores)]), np.zeros(len(scores))))
    assert calibration is not None
    dense = np.unique(np.concatenate([scores, np.linspace(1e-6, 1 - 1e-6, 10_001), [0.0, 1e-200]]))
    probabilities = calibration(dense)
    assert (np.diff(probabilities) > 0).all()
    assert probabilities.min() >= 0 and probabilities.max() <= 1


def test_equal_scores_and_none_at_all() -> None:
    same = Matched(np.full(100, 0.7), np.arange(100) < 20, np.arange(100))
    calibration = fit_calibration(same)
    assert calibration is not None
    assert calibration(same.scores) == pytest.approx(np.full(100, 0.2), abs=0.05)
    nothing = Matched(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))
    assert fit_calibration(nothing) is None
    assert held_out_error(nothing) == 0


def test_the_order_of_detections_with_one_score_does_not_matter() -> None:
    """All right ones behind all wrong ones, as where the last images are the easy ones."""
    rng = np.random.default_rng(0)
    scores = rng.choice([0.01, 0.2, 0.7], 3000)
    correct = rng.random(3000) < scores
    behind = correct.argsort(kind="stable")
    one = fit_calibration(Matched(scores, correct, np.arange(3000)))
    other = fit_calibration(Matched(scores[behind], correct[behind], np.arange(3000)))
    assert one == other and one is not None
    assert one(np.array([0.01, 0.2, 0.7])) == pytest.approx([0.01, 0.2, 0.7], abs=0.05)


def test_calibration_error_by_hand() -> None:
    """Bins of width 1/2: scores 0.1 and 0.3, one right, gap 0.3; scores 0.9, 1 and 1, two right, gap 0.3."""
    scores = np.array([0.1, 0.3, 0.9, 1.0, 1.0])
    correct = np.array([True, False, True, True, False])
    assert calibration_error(scores, correct, bins=2) == pytest.approx((2 * 0.3 + 3 * 0.3) / 5)


def test_plain_values_give_the_same_map() -> None:
    matched, _ = overconfident(2000)
    calibration = fit_calibration(matched)
    assert calibration is not None
    assert Calibration.from_plain(calibration.as_plain()) == calibration


def test_the_steepest_part_of_a_map_is_known() -> None:
    """Against differences of the map itself over the logits."""
    for calibration in (
        Calibration((-2.5, -1.0, -0.9, 2.0), (0.02, 0.3, 0.7, 0.9)),
        Calibration((0.5,), (0.25,)),
        Calibration((0.5,), (0.6,)),
    ):
        logits = np.linspace(-6, 6, 120_001)
        rises = np.diff(calibration(1 / (1 + np.exp(-logits)))) / np.diff(logits)
        assert calibration.steepest == pytest.approx(rises.max(), rel=1e-3)
