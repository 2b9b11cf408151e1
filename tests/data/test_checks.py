"""Splits of a data set must belong together."""

import pytest

from crnas_jax.data.checks import require_consistent
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.errors import UserError


def test_splits_that_share_an_image_are_refused():
    sources = {name: SyntheticSource(2, 32, seed=0) for name in ("train", "test")}
    with pytest.raises(UserError, match="synthetic_0_0 is in train too"):
        require_consistent(sources)
    sources["test"] = SyntheticSource(2, 32, seed=1)
    require_consistent(sources)
    sources["test"].category_ids = [1, 2, 4]
    with pytest.raises(UserError, match="other categories than train: 3 is missing here"):
        require_consistent(sources)
    sources["test"] = SyntheticSource(2, 32, seed=1)
    sources["test"].coco["annotations"] = []
    with pytest.raises(UserError, match="no object"):
        require_consistent(sources)
