"""From settings to families."""

from training.icl.balls_and_urns import BallsAndUrnsFamily
from training.icl.base import Family
from training.icl.classification import ClassificationFamily
from training.icl.linear_regression import LinearRegressionFamily
from training.icl.settings import BallsAndUrns, Classification, LinearRegression, Setting


def make_family(setting: Setting) -> Family:
    """The data and mathematics of a setting; nothing is drawn yet."""
    match setting:
        case BallsAndUrns():
            return BallsAndUrnsFamily(setting)
        case LinearRegression():
            return LinearRegressionFamily(setting)
        case Classification():
            return ClassificationFamily(setting)
        case _:
            raise ValueError(
                f"setting={type(setting).__name__}: one of BallsAndUrns, LinearRegression, "
                "Classification is needed"
            )
