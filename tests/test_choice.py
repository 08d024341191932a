"""Which members are compared with the loop."""

import pytest

from ensexport.choice import describe_choice, parse_choice
from ensexport.errors import UsageError


@pytest.mark.parametrize(
    ("text", "n_members", "expected"),
    [
        ("all", 3, (0, 1, 2)),
        ("none", 3, ()),
        ("first", 5, (0,)),
        ("first,last", 5, (0, 4)),
        ("last", 1, (0,)),
        ("first, last, 9", 4, (0, 1, 2, 3)),
    ],
)
def test_what_is_named_is_chosen(text, n_members, expected):
    assert parse_choice(text).indices(n_members) == expected


@pytest.mark.parametrize("text", ["first,last,8", "first,last,8 random"])
def test_random_members_are_others_and_the_same_in_every_run(text):
    chosen = parse_choice(text).indices(1000)
    assert len(chosen) == len(set(chosen)) == 10
    assert {0, 999} <= set(chosen)
    assert chosen == tuple(sorted(chosen)) == parse_choice(text).indices(1000)


@pytest.mark.parametrize("text", ["", "some", "all,first", "none,3", "-1", "0", "first,x", "1,2", "8 of them"])
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match="expected all, none, or a list of first, last and a number"):
        parse_choice(text)


def test_a_choice_in_words():
    assert describe_choice(range(3), 3) == "all 3 members"
    assert describe_choice((0, 7), 9) == "2 of 9 members (0, 7)"
    assert describe_choice(range(12), 1000) == "12 of 1000 members (0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 others)"
