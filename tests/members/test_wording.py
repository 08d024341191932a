import pytest

from ensexport.members.wording import close_match, join_numbers, join_some, quote_path, show_path


@pytest.mark.parametrize(
    ("path", "shown", "quoted"),
    [("runs/s 0.pt", "runs/s 0.pt", "'runs/s 0.pt'"), ("a\nb.pt", r"'a\nb.pt'", r"'a\nb.pt'")],
    ids=["plain", "line break"],
)
def test_paths_are_shown_without_control_characters(path, shown, quoted):
    assert show_path(path) == shown
    assert quote_path(path) == quoted


def test_long_lists_say_how_many_are_left_out():
    assert join_some(["a", "b"]) == "a, b"
    assert join_some(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_numbers_are_joined_as_in_a_sentence():
    assert join_numbers([4]) == "4"
    assert join_numbers([0, 3, 7]) == "0, 3 and 7"


def test_only_close_names_are_suggested():
    assert close_match("opsett", ["opset", "dtype"]) == " Did you mean 'opset'?"
    assert close_match("zzz", ["opset", "dtype"]) == ""
