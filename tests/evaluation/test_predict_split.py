"""Networks over whole splits: what they compute is compiled once."""

import jax
import pytest
from helpers import fresh_variables, tiny_options

from crnas_jax.arch.staged import Arch
from crnas_jax.data.classification import SyntheticClassification
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import ImageSize
from crnas_jax.evaluation.classification import accuracy
from crnas_jax.evaluation.predict_split import predict_split
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions

TINY = Arch("resnet_basic", (1, 1, 1, 1), widths=(8, 8, 16, 16))


def _detections(weights, split):
    detector = Detector(TINY, tiny_options())
    source = SyntheticSource(6, 64, seed=split)
    variables = fresh_variables(detector, weights)
    return predict_split(detector, variables, source, ImageSize(64, 64), 4, num_devices=1)


def _accuracy(weights, split):
    classifier = Classifier(TINY, ClassifierOptions(9))
    source = SyntheticClassification(12, 32, seed=split)
    variables = fresh_variables(classifier, weights)
    return accuracy(classifier, variables, source, 32, 4, lambda index: None, num_devices=1)


@pytest.mark.parametrize("evaluate", [_detections, _accuracy])
def test_other_weights_and_splits_compile_nothing(evaluate, caplog):
    """Models are equal, not the same."""
    first = evaluate(weights=0, split=0)
    with jax.log_compiles():
        others = [evaluate(weights, split) for weights, split in ((1, 0), (0, 1), (0, 0))]
    assert "Compiling" not in caplog.text
    assert others[2] == first
    assert others[0] != first
    assert others[1] != first
