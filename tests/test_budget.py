"""Budget: exact floors, zero is an error, shares add up."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdall import BadInput, Budget, BudgetError
from holdall.budget import apportion


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25%", Budget(fraction=Fraction(1, 4))),
        ("1.5GB", Budget(bytes=1_500_000_000)),
        ("1.5 GiB", Budget(bytes=3 << 29)),
        ("45MB", Budget(bytes=45_000_000)),
        ("3bit", Budget(bits=Fraction(3))),
        ("2.5 bits", Budget(bits=Fraction(5, 2))),
        (1234, Budget(bytes=1234)),
        (0.25, Budget(fraction=Fraction(1, 4))),
        (None, None),
    ],
)
def test_parse_reads_what_users_write(text, expected):
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "bad",
    ["potato", "", "0", "0%", "-1", "-5MB", 0, -1, 0.0, 1.5, "1.5", "12 parsecs", "nan", "1e9", True, "0bit"],
)
def test_parse_refuses_in_one_line(bad):
    with pytest.raises(BadInput) as caught:
        Budget.parse(bad)
    assert "\n" not in str(caught.value) and "budget" in str(caught.value)


def test_count_is_an_exact_floor():
    assert Budget.parse("29%").count(100) == 29  # 0.29 * 100 is 28.999... in floats
    assert Budget.parse("33.3%").count(1000) == 333
    assert Budget.parse("100%").count(7) == 7
    assert Budget(bytes=100).count(50, each=8) == 12
    assert Budget(bytes=10**9).count(50, each=8) == 50
    assert Budget(bits=Fraction(4)).count(64, each=32, elements=16) == 16


def test_nothing_left_is_an_error_that_names_the_least():
    with pytest.raises(BudgetError) as caught:
        Budget.parse("5%").count(10)
    assert caught.value.least == "10%"
    with pytest.raises(BudgetError) as caught:
        Budget(bytes=7).count(50, each=8)
    assert caught.value.least == 8


@given(
    st.integers(0, 10**12),
    st.lists(
        st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 1000)), min_size=1, max_size=20
    ),
)
def test_apportion_adds_up_and_keeps_the_floors(total, parts):
    weights, floors = [w for w, _ in parts], [f for _, f in parts]
    if sum(floors) > total:
        with pytest.raises(BudgetError):
            apportion(total, weights, floors)
        return
    shares = apportion(total, weights, floors)
    assert sum(shares) == total
    assert all(s >= f for s, f in zip(shares, floors, strict=True))


@given(st.integers(1, 10**6), st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_apportion_is_proportional_to_one(total, weights):
    for share, w in zip(apportion(total, weights, [0] * len(weights)), weights, strict=True):
        assert abs(share - total * w / sum(weights)) < 1


@given(st.integers(1, 10**15))
def test_str_parses_back(n):
    assert Budget.parse(str(Budget(bytes=n))) == Budget(bytes=n)


def test_a_budget_is_one_thing_only():
    with pytest.raises(BadInput):
        Budget(bytes=1, bits=Fraction(1))
    with pytest.raises(BadInput):
        Budget()
