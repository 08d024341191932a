import pytest

from ensexport import members


def test_every_public_name_can_be_imported():
    for name in members.__all__:
        assert getattr(members, name).__name__ == name
    assert dir(members) == sorted(members.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_member'"):
        members.load_member  # noqa: B018
