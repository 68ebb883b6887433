"""Names of base models: what clients may say, and what they are told."""

import os
from pathlib import Path

import pytest

from training.serving.base_models import BaseModels
from training.serving.errors import ServingError


def test_names_and_aliases_are_what_can_be_said(tmp_path: Path):
    models = BaseModels(["org/model", str(tmp_path)], {"Qwen/Qwen3-8B": str(tmp_path)})
    assert models.names == ["org/model", str(tmp_path), "Qwen/Qwen3-8B"]
    assert models.default == "org/model"
    assert models.resolve("Qwen/Qwen3-8B") == models.resolve(str(tmp_path)) == str(tmp_path)
    assert models.same("Qwen/Qwen3-8B", str(tmp_path)) and not models.same("org/model", "other")
    for unknown in ("qwen", "", "/etc", "../org/model"):
        with pytest.raises(ServingError, match="this server has org/model, ") as caught:
            models.resolve(unknown)
        assert caught.value.status == 400


def test_clients_are_told_names_that_they_can_load(tmp_path: Path, monkeypatch):
    """The SDK drops the last part of a name with two slashes, and takes others as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    models = BaseModels(["org/model", "model"], {"alias": "model"})
    assert models.client_name("org/model") == "org/model"
    told = models.client_name("model")
    assert models.client_name("alias") == told
    far = BaseModels(["org/model", "model"], {"alias": "model"}, has_local_clients=False)
    assert [far.client_name(name) for name in ("model", "alias")] == ["model", "alias"]
    assert told == str(tmp_path / "model") and told.count("/") != 2
    # what it was told it may ask for
    assert models.resolve(told) == "model"


def test_a_path_of_two_slashes_is_told_with_three(monkeypatch):
    # the only folders of every machine that lie so
    folder = next(path for path in ("/usr/bin", "/usr/lib") if os.path.realpath(path) == path)
    models = BaseModels([folder])
    told = models.client_name(folder)
    assert told == folder.replace("/", "/./", 1) and told.count("/") == 3
    assert models.resolve(told) == folder


@pytest.mark.parametrize(
    ("names", "aliases", "told"),
    [([], {}, "at least one"), (["a"], {"a": "b"}, "'a'"), (["a"], {"": "a"}, "empty")],
)
def test_names_that_cannot_be_told_apart_are_refused(names, aliases, told):
    with pytest.raises(ValueError, match=told):
        BaseModels(names, aliases)
