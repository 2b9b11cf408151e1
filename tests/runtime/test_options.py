"""Bounds of options: what is accepted, and what the refusal names."""

import dataclasses
import math

import pytest

from crnas_jax.errors import UserError
from crnas_jax.runtime.options import (
    check_below_one,
    check_choice,
    check_counts,
    check_length,
    check_not_negative,
    check_positive,
)


@dataclasses.dataclass(frozen=True)
class Options:
    value: object
    fixed: int = 1


@pytest.mark.parametrize(
    ("check", "accepted", "refused", "remedy"),
    [
        (
            check_counts,
            (1, 2**31 - 1, (1, 2), ((1, 2), (3,)), ()),
            (0, -1, 1.0, 1.5, True, "1", None, 2**31, (1, 0), ((1,), (2, 0.5)), math.nan),
            "give a whole number of at least 1",
        ),
        (
            check_positive,
            (1, 1e-9, 10.5, (0.5, 1)),
            (0, -1.0, math.inf, math.nan, True, "1", None, (1.0, 0.0)),
            "give a number above 0",
        ),
        (
            check_not_negative,
            (0, 0.0, 2.5, (0, 1)),
            (-1e-9, math.inf, math.nan, False, "0", None, (1, -1)),
            "give a number of at least 0",
        ),
        (
            check_below_one,
            (0, 0.999, -3, (0.1, 0.2)),
            (1, 1.0, math.nan, -math.inf, "0", None, (0.5, 1.0)),
            "give a number below 1",
        ),
    ],
)
def test_numbers_are_bounded_alone_and_in_tuples(check, accepted, refused, remedy):
    for value in accepted:
        check(Options(value), "value")
    for value in refused:
        with pytest.raises(UserError) as error:
            check(Options(value), "value")
        assert (error.value.where, error.value.field) == ("Options", "value")
        assert error.value.problem == repr(value)
        assert error.value.remedy == remedy


def test_the_least_count_can_be_another():
    check_counts(Options(0), "value", least=0)
    check_counts(Options((2, 3)), "value", least=2)
    with pytest.raises(UserError, match="Options: value: 1; give a whole number of at least 2"):
        check_counts(Options(1), "value", least=2)


def test_the_field_that_is_wrong_is_named_among_several():
    with pytest.raises(UserError, match="Options: fixed: 0; "):
        check_counts(Options(1, fixed=0), "value", "fixed")


def test_tuples_have_a_length():
    check_length(Options((1, 2)), "value", 2)
    check_length(Options([1, 2]), "value", 2)
    check_length(Options(()), "value", 2, or_empty=True)
    for value in ((), (1,), (1, 2, 3), "ab", 2):
        with pytest.raises(UserError, match=r"Options: value: .*; give 2 entries"):
            check_length(Options(value), "value", 2)


def test_a_choice_is_one_of_those_there_are():
    check_choice(Options("a"), "value", ("a", "b"))
    check_choice(Options(("a", "b", "a")), "value", ("a", "b"))
    for value in ("c", ("a", "c")):
        with pytest.raises(UserError, match=r"^Options: value: 'c' is unknown; use 'a' or 'b'$"):
            check_choice(Options(value), "value", ("a", "b"))
