"""A recipe as text, and what is no recipe."""

from __future__ import annotations

import base64
import json
import zlib

import pytest

from ensexport.errors import ArtifactError
from ensexport.recipe import coding
from ensexport.recipe.coding import decode, encode


def _packed(data: object) -> str:
    return base64.b64encode(zlib.compress(json.dumps(data).encode())).decode()


def test_what_was_written_is_read() -> None:
    recipe = {"weights": {"b": [1, 2.5, None], "a": "ü"}}
    assert decode(encode(recipe)) == {"version": 1, **recipe}


def test_equal_recipes_are_equal_text() -> None:
    assert encode({"a": 1, "b": {"c": 2, "d": 3}}) == encode({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("*", id="no-letters"),
        pytest.param("YWJj", id="not-compressed"),
        pytest.param(encode({"a": "b" * 100})[:-8], id="cut-off"),
        pytest.param(base64.b64encode(zlib.compress(b"{nothing")).decode(), id="no-json"),
        pytest.param(base64.b64encode(zlib.compress(b"\xff\xfe")).decode(), id="no-text"),
        pytest.param(base64.b64encode(zlib.compress(b"[" * 100_000)).decode(), id="nested"),
        pytest.param(_packed([1]), id="a-list"),
        pytest.param(_packed({"weights": {}}), id="no-version"),
        pytest.param(_packed({"version": True}), id="version-is-true"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="its recipe cannot be read"):
        decode(text)


def test_a_later_version_is_refused() -> None:
    with pytest.raises(ArtifactError, match="its recipe is of version 2, and this ensexport reads version 1"):
        decode(_packed({"version": 2}))


def test_what_unpacks_to_more_than_any_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "_MAX_BYTES", 1000)
    with pytest.raises(ArtifactError, match="its recipe cannot be read"):
        decode(_packed({"version": 1, "weights": " " * 2000}))
