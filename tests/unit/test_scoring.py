"""From logits to rewards: as the checkpoint's logits are, or corrected where that is asked for; a failure is its own row's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit

from wildreward_ray.core.errors import RewardUnavailableError
from wildreward_ray.core.template import DEFAULT_TEMPLATE
from wildreward_ray.reward.config import Calibration, RewardConfig
from wildreward_ray.stages.scoring import Scored, Scorer

LOGITS = np.array([[2.0, 0.5, -1.0], [0.1, -0.2, -3.0]], dtype=np.float32)
FITTED = Calibration(method="temperature", scale=(0.5, 0.5, 0.5), shift=(0.0, 0.0, 0.0), rows=40)


class Fixed:
    """An engine that knows its answer."""

    def __init__(self, answer: npt.NDArray[np.float32]) -> None:
        self._answer = answer

    def logits(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        return self._answer[: len(inputs)]


def scorer(*, calibrated: bool, logits: npt.NDArray[np.float32] = LOGITS) -> Scorer:
    config = RewardConfig(levels=4, template=DEFAULT_TEMPLATE, max_length=64, calibration=FITTED)
    return Scorer(config, None, Fixed(logits), "fixed", "1", calibrated=calibrated)  # type: ignore[arg-type]


@pytest.mark.parametrize(("calibrated", "scale"), [(False, 1.0), (True, 0.5)])
def test_a_stored_calibration_is_applied_only_where_it_is_asked_for(calibrated: bool, scale: float) -> None:
    expected = expit(LOGITS * scale)
    found = scorer(calibrated=calibrated).score([[1], [2]])
    np.testing.assert_allclose(found.p_gt, expected, rtol=1e-6)
    np.testing.assert_allclose(found.score, 1 + expected.sum(axis=1), rtol=1e-6)
    each = scorer(calibrated=calibrated).score_each([[1], [2]])
    assert [float(one.score[0]) for one in each if isinstance(one, Scored)] == pytest.approx(found.score.tolist())


def test_a_nan_fails_its_own_row_and_a_batch_as_a_whole() -> None:
    logits = LOGITS.copy()
    logits[0, 1] = np.nan
    broken = scorer(calibrated=True, logits=logits)
    first, second = broken.score_each([[1], [2]])
    assert isinstance(first, RewardUnavailableError)
    assert isinstance(second, Scored)
    with pytest.raises(RewardUnavailableError, match="1 of 2"):
        broken.score([[1], [2]])
