"""Calibration against scores with known probabilities, and against cases computed by hand."""

import numpy as np
import pytest

from detector.evaluation.calibration import (
    Calibration,
    Matched,
    ScoreMap,
    calibration_error,
    fit_calibration,
    held_out_error,
)

KNOWN = np.ones(1, np.bool_)


def matches(scores, correct, images, labels=None) -> Matched:
    """All of one class unless labels are given."""
    labels = np.zeros(len(scores), np.int64) if labels is None else labels
    return Matched(scores, correct, images, labels)


def fitted(matched: Matched) -> ScoreMap:
    """The map of the only class."""
    calibration = fit_calibration(matched, KNOWN)
    assert calibration is not None
    return calibration.maps[0]


def overconfident(count: int = 20_000, scale: float = 3.0, shift: float = -4.0) -> tuple[Matched, np.ndarray]:
    """Detections whose logits are a linear function of the true ones, and the true probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, count)
    truth = 1 / (1 + np.exp(-logits))
    scores = 1 / (1 + np.exp(-(scale * logits + shift)))
    return matches(scores, rng.random(count) < truth, np.arange(count) // 10), truth


@pytest.mark.parametrize(("scale", "shift"), [(3.0, -4.0), (0.1, 6.0), (1.0, -20.0)])
def test_the_probabilities_behind_the_scores_are_found_again(scale: float, shift: float) -> None:
    """A ranking loss may stretch and shift its logits as it likes."""
    matched, truth = overconfident(scale=scale, shift=shift)
    calibration = fitted(matched)
    found = calibration(matched.scores)
    assert np.abs(found - truth).mean() < 0.02
    assert calibration_error(matched.scores, matched.correct) > 0.1
    assert calibration_error(found, matched.correct) < 0.02
    assert held_out_error(matched, KNOWN) < 0.02


def test_high_scores_are_worth_what_they_say_among_many_wrong_ones() -> None:
    """A detector gives its 100 best boxes of every image: nearly all are background, with scores near 0."""
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(-9, 2, 40_000), rng.uniform(-3, 4, 1500)])
    truth = 1 / (1 + np.exp(-logits))
    matched = matches(1 / (1 + np.exp(-0.5 * logits)), rng.random(len(truth)) < truth, np.arange(len(truth)))
    calibration = fitted(matched)
    high = np.linspace(0.2, 0.97, 30)
    found = calibration(1 / (1 + np.exp(-0.5 * np.log(high / (1 - high)))))
    assert np.abs(found - high).max() < 0.08


@pytest.mark.parametrize("most", [0.3, 0.05])
def test_the_best_detections_of_a_poor_detector_are_promised_no_more_than_they_keep(most: float) -> None:
    """However high the score, only a share of `most` is right; low scores must get their true share, too."""
    rng = np.random.default_rng(1)
    logits = rng.normal(-1, 2, 5000)
    truth = most / (1 + np.exp(-2 * logits))
    matched = matches(1 / (1 + np.exp(-logits)), rng.random(len(truth)) < truth, np.arange(len(truth)))
    calibration = fitted(matched)
    found = calibration(matched.scores)
    assert found.max() < 1.5 * most
    assert np.abs(found - truth).mean() < 0.1 * most
    assert (np.diff(found[np.argsort(logits)]) > 0).all()


def test_a_few_detections_on_top_are_not_learnt_by_heart() -> None:
    """Three in ten of 194 are right; so are all six that score above them, perhaps by chance."""
    scores = np.append(np.linspace(0.1, 0.6, 194), np.linspace(0.8, 0.9, 6))
    correct = np.append(np.arange(194) % 10 < 3, np.ones(6, np.bool_))
    calibration = fitted(matches(scores, correct, np.arange(200)))
    assert calibration(np.array([0.9]))[0] < 0.7


@pytest.mark.parametrize("right", [5, 10, 15, 19, 20, 40])
def test_a_few_right_ones_that_are_well_apart_do_not_drown_among_the_wrong(right: int) -> None:
    """For example, a detector on ten images that it has learnt."""
    scores = np.concatenate((np.linspace(0.01, 0.1, 985), np.linspace(0.8, 0.9, right)))
    correct = np.arange(len(scores)) >= 985
    calibration = fitted(matches(scores, correct, np.arange(len(scores))))
    assert calibration(scores[correct]).min() > 0.55 and calibration(scores[correct]).mean() > 0.75
    assert calibration(scores[~correct]).mean() < 0.07


def test_a_few_right_ones_anywhere_promise_little() -> None:
    """Twelve of 600 are right at random: in each draw, one or two of the best six may be among them."""
    rng = np.random.default_rng(0)
    promised = []
    for _ in range(50):
        scores, correct = np.sort(rng.random(600)), rng.permutation(600) < 12
        calibration = fitted(matches(scores, correct, np.arange(600)))
        promised.append(calibration(scores[-1:])[0])
    assert np.mean(promised) < 0.15 and max(promised) < 0.5


def test_levels_that_are_joined_count_by_how_many_detections_they_have() -> None:
    """By hand: 900 with the lower score, half of them right, and 300 with the higher, a fifth of them."""
    scores = np.repeat([0.2, 0.8], [900, 300])
    correct = np.arange(1200) % 2 == 0
    correct[900:] = np.arange(300) % 5 == 0
    calibration = fitted(matches(scores, correct, np.arange(1200)))
    assert calibration(np.array([0.2, 0.8])) == pytest.approx([(450 + 60) / 1200] * 2, abs=0.01)


def test_where_a_score_says_nothing_all_are_promised_the_same() -> None:
    rng = np.random.default_rng(0)
    matched = matches(rng.random(5000), rng.random(5000) < 0.2, np.arange(5000))
    calibration = fitted(matched)
    found = calibration(matched.scores)
    assert np.abs(found - 0.2).max() < 0.1
    assert calibration_error(found, matched.correct) < 0.02


def test_held_out_error_is_that_of_a_map_fitted_to_the_other_images() -> None:
    """Every other image has only right detections, the rest only wrong ones, and all scores are equal.

    A map fitted to one half gives the opposite of the other: (30 + 1/2) / (30 + 1) or its complement.
    """
    images = np.arange(60) // 3
    matched = matches(np.full(60, 0.7), images % 2 == 0, images)
    assert held_out_error(matched, KNOWN) == pytest.approx(30.5 / 31)


def test_the_inverse_gives_the_scores_back() -> None:
    """Between the knots and beyond them; only 0 and 1 are mapped to 0 and 1."""
    calibration = ScoreMap((-3.0, -1.0, 2.0), (0.1, 0.4, 0.9))
    scores = 1 / (1 + np.exp(-np.linspace(-12, 12, 400)))
    np.testing.assert_allclose(calibration.inverse(calibration(scores)), scores, rtol=2e-9)
    assert calibration.inverse(np.array([0.0, 1.0])) == pytest.approx([0, 1])


def test_the_inverse_keeps_the_detection_that_a_threshold_was_taken_from() -> None:
    scores = 1 / (1 + np.exp(-np.linspace(-12, 12, 20_000)))
    calibration = ScoreMap((-3.0, -1.0, 2.0), (0.1, 0.4, 0.9))
    thresholds = calibration.inverse(calibration(scores))
    assert np.searchsorted(scores, thresholds).tolist() == list(range(len(scores)))


@pytest.mark.parametrize("correct", [[False] * 500, [True] * 500, [k % 3 == 0 for k in range(500)]])
def test_order_is_kept_where_scores_are_dense_and_where_they_are_extreme(correct: list[bool]) -> None:
    rng = np.random.default_rng(0)
    scores = np.unique(np.concatenate([rng.random(490), 10.0 ** -np.arange(1, 11), [1e-60]]))[:500]
    calibration = fitted(matches(scores, np.array(correct[: len(scores)]), np.zeros(len(scores))))
    dense = np.unique(np.concatenate([scores, np.linspace(1e-6, 1 - 1e-6, 10_001), [0.0, 1e-200]]))
    probabilities = calibration(dense)
    assert (np.diff(probabilities) > 0).all()
    assert probabilities.min() >= 0 and probabilities.max() <= 1


def test_equal_scores_and_none_at_all() -> None:
    same = matches(np.full(100, 0.7), np.arange(100) < 20, np.arange(100))
    calibration = fitted(same)
    assert calibration(same.scores) == pytest.approx(np.full(100, 0.2), abs=0.05)
    nothing = matches(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))
    assert fit_calibration(nothing, KNOWN) is None
    assert held_out_error(nothing, KNOWN) is None


def test_the_order_of_detections_with_one_score_does_not_matter() -> None:
    """All right ones come after all wrong ones, as when the last images are the easy ones."""
    rng = np.random.default_rng(0)
    scores = rng.choice([0.01, 0.2, 0.7], 3000)
    correct = rng.random(3000) < scores
    behind = correct.argsort(kind="stable")
    one = fitted(matches(scores, correct, np.arange(3000)))
    other = fitted(matches(scores[behind], correct[behind], np.arange(3000)))
    assert one == other
    assert one(np.array([0.01, 0.2, 0.7])) == pytest.approx([0.01, 0.2, 0.7], abs=0.05)


def test_calibration_error_by_hand() -> None:
    """Bins of width 1/2: scores 0.1 and 0.3, one right, gap 0.3; scores 0.9, 1 and 1, two right, gap 0.3."""
    scores = np.array([0.1, 0.3, 0.9, 1.0, 1.0])
    correct = np.array([True, False, True, True, False])
    assert calibration_error(scores, correct, bins=2) == pytest.approx((2 * 0.3 + 3 * 0.3) / 5)


def classes(*each: Matched) -> Matched:
    """Joins sets of one class each into one set of several classes."""
    parts = zip(*((one.scores, one.correct, one.images) for one in each), strict=True)
    labels = np.repeat(np.arange(len(each)), [len(one.scores) for one in each])
    return Matched(*(np.concatenate(part) for part in parts), labels)


def test_each_class_has_a_scale_of_its_own() -> None:
    """As when ranking class by class: the same logit is worth more in one class than in another."""
    cautious, truth = overconfident(5000, scale=1.0, shift=-4.0)
    bold, same_truth = overconfident(5000, scale=1.0, shift=4.0)
    both, worth = classes(cautious, bold), np.concatenate([truth, same_truth])
    calibration = fit_calibration(both, np.ones(2, np.bool_))
    assert calibration is not None
    found = calibration(both.scores, both.labels)
    assert np.abs(found - worth).mean() < 0.03
    assert held_out_error(both, np.ones(2, np.bool_)) < 0.02
    for label in range(2):
        order = both.scores[both.labels == label].argsort()
        assert (np.diff(found[both.labels == label][order]) >= 0).all()
    # One map for both, as for detections without a class, is far off.
    pooled = fitted(matches(both.scores, both.correct, both.images))
    assert np.abs(pooled(both.scores) - worth).mean() > 0.15


def test_a_class_is_what_all_are_until_its_own_detections_tell() -> None:
    """Twenty detections of a rare class: a tenth are right, against nine tenths of the common class.

    By hand: (2 + 3 x 0.87) / (20 + 3). Nothing is known about a class without gt boxes.
    """
    many = matches(np.full(1000, 0.7), np.arange(1000) % 10 > 0, np.arange(1000))
    few = matches(np.full(20, 0.7), np.arange(20) < 2, np.arange(20))
    known = np.array([True, True, False, True])
    calibration = fit_calibration(classes(many, few, few), known)
    assert calibration is not None
    of_all = (900 + 2 + 2 + 0.5) / (1040 + 1)
    found = [one(np.array(0.7)) for one in calibration.maps]
    expected = [(900 + 3 * of_all) / 1003, (2 + 3 * of_all) / 23, of_all, of_all]
    assert found == pytest.approx(expected, abs=0.003)  # a knot is a mean of logits, which is rounded


def test_beyond_what_a_class_has_shown_it_is_worth_what_others_are() -> None:
    """The best scores of a rare class are far below those of the other; the true relation is the same."""
    rng = np.random.default_rng(0)
    logits = [rng.normal(-2, 2, 4000), np.minimum(rng.normal(-4, 1.5, 60), -1.5)]
    sets = []
    for of_class in logits:
        truth = 1 / (1 + np.exp(1 - of_class))
        right = rng.random(len(truth)) < truth
        sets.append(matches(1 / (1 + np.exp(-of_class)), right, np.arange(len(truth))))
    calibration = fit_calibration(classes(*sets), np.ones(2, np.bool_))
    assert calibration is not None
    beyond = np.linspace(-0.5, 5, 12)
    common, rare = (one(1 / (1 + np.exp(-beyond))) for one in calibration.maps)
    assert np.abs(rare - common).max() < 0.1
    assert np.abs(common - 1 / (1 + np.exp(1 - beyond))).max() < 0.15
    nowhere = np.linspace(-14, 9, 5000)
    assert all((np.diff(one(1 / (1 + np.exp(-nowhere)))) > 0).all() for one in calibration.maps)


def test_below_what_a_class_has_shown_it_is_worth_what_others_are() -> None:
    """A rare class with only good detections: lower scores must not be promised as much."""
    rng = np.random.default_rng(0)
    common = rng.normal(-2, 2, 4000)
    right = rng.random(4000) < 1 / (1 + np.exp(1 - common))
    high = 1 / (1 + np.exp(-rng.uniform(1, 2, 40)))
    sets = (
        matches(1 / (1 + np.exp(-common)), right, np.arange(4000)),
        matches(high, np.ones(40, bool), np.arange(40)),
    )
    calibration = fit_calibration(classes(*sets), np.ones(2, np.bool_))
    assert calibration is not None
    below = 1 / (1 + np.exp(-np.linspace(-6, -2, 9)))
    of_common, of_rare = (one(below) for one in calibration.maps)
    assert np.abs(of_rare - of_common).max() < 0.02 and calibration.maps[1](np.array(0.8)) > 0.8


@pytest.mark.parametrize("apart", [0.0, 1e-300, 2.0**-53])
def test_knots_rise_and_are_finite_where_scores_round_to_one_or_zero(apart: float) -> None:
    """Logits of 37 and 38 give the last double below 1, and 1: only their ranks tell them apart."""
    scores = np.repeat([0.0, apart, 1 - apart, 1 - 2.0**-53, 1.0], 60)
    wanted = np.repeat([0.0, 0.1, 0.5, 0.7, 0.9], 60)
    some = matches(scores, np.arange(300) % 60 < 60 * wanted, np.arange(300))
    calibration = fit_calibration(classes(some, some.of(scores > 0.5)), np.ones(2, np.bool_))
    assert calibration is not None
    for one in calibration.maps:
        assert np.isfinite(one.logits).all() and np.isfinite(one.steepest)
        assert (np.diff(one.logits) > 0).all() and (np.diff(one.probabilities) > 0).all()
        lowest, highest = one(np.array([0.0, 1.0]))
        assert lowest < 0.2 and 0.5 < highest < 0.95


def test_a_single_class_does_not_count_twice() -> None:
    matched, _ = overconfident(500)
    alone = fit_calibration(matched, np.ones(3, np.bool_))
    assert alone is not None and len(set(alone.maps)) == 1
    assert alone.maps[0] == fitted(matched)


def test_plain_values_give_the_same_maps() -> None:
    """So do the plain values of checkpoints that have one map for all classes."""
    matched, _ = overconfident(2000)
    calibration = fit_calibration(classes(matched, overconfident(300)[0]), np.ones(2, np.bool_))
    assert calibration is not None and calibration.maps[0] != calibration.maps[1]
    assert Calibration.from_plain(calibration.as_plain(), 2) == calibration
    (one, _) = calibration.as_plain()
    assert Calibration.from_plain(one, 3) == Calibration((calibration.maps[0],) * 3)


def test_the_steepest_part_of_a_map_is_known() -> None:
    """Oracle: finite differences of the map over the logits."""
    for calibration in (
        ScoreMap((-2.5, -1.0, -0.9, 2.0), (0.02, 0.3, 0.7, 0.9)),
        ScoreMap((0.5,), (0.25,)),
        ScoreMap((0.5,), (0.6,)),
    ):
        logits = np.linspace(-6, 6, 120_001)
        rises = np.diff(calibration(1 / (1 + np.exp(-logits)))) / np.diff(logits)
        assert calibration.steepest == pytest.approx(rises.max(), rel=1e-3)
