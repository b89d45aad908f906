"""A learned quality score: hashed n-grams, logistic regression, calibration.

``train`` makes a `QualityModel` of labelled texts; its ``scores`` are probabilities of the positive label.
"""

from data_tools.quality.features import FeatureConfig
from data_tools.quality.model import QualityModel
from data_tools.quality.training import TrainingConfig, train

__all__ = ["FeatureConfig", "QualityModel", "TrainingConfig", "train"]
