"""What a checkpoint may be called, and tinker:// paths."""

import pytest

from training.serving.errors import ServingError
from training.serving.names import TinkerPath, checkpoint_name, for_sampling

GOOD = ["final", "000010", "a", "-", "_x", "step.1", "A.b_c-9", "x" * 255, "a..b"]
BAD = ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a b", "a\n", "ä", "x" * 256, "a\0", "a%2f"]
BAD += ["a:b", "~", "$HOME", "\u202ea", None, 3, b"a", ["a"]]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are_fine(name: str) -> None:
    assert checkpoint_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_names_that_are_refused_before_any_work(name: object) -> None:
    with pytest.raises(ServingError) as caught:
        checkpoint_name(name, "path")
    assert caught.value.status == 400 and caught.value.param == "path"
    assert "1 to 255 of A-Z a-z 0-9 . _ - and does not start with a dot" in caught.value.message
    assert caught.value.message.isprintable() and caught.value.message.isascii()


def test_a_huge_name_makes_a_short_message() -> None:
    with pytest.raises(ServingError) as caught:
        checkpoint_name("/" * 100_000)
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("kind", "checkpoint_type"),
    [("weights", "training"), ("sampler_weights", "sampler"), ("external_weights", "external")],
)
def test_a_path_has_the_parts_of_the_sdk(kind: str, checkpoint_type: str) -> None:
    run = "0ac02541-d7d2-4a7a-9ad4-b6d3cd1a9d4c:train:0"
    path = TinkerPath.parse(f"tinker://{run}/{kind}/000010")
    assert path == TinkerPath(run, kind, "000010")
    assert str(path) == f"tinker://{run}/{kind}/000010"
    assert (path.checkpoint_id, path.checkpoint_type) == (f"{kind}/000010", checkpoint_type)
    assert TinkerPath.of(run, path.checkpoint_id) == path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "needed is tinker://<run id>/<weights|sampler_weights|external_weights>/<name>"),
        (None, "needed is tinker://"),
        ("file:///etc/passwd", "needed is tinker://"),
        ("tinker://run/weights", "which has 2 parts after tinker://"),
        ("tinker://run/weights/a/b", "which has 4 parts"),
        ("tinker://run/weights/../../x", "which has 5 parts"),
        ("tinker:///weights/a", "whose run id '' cannot be one"),
        ("tinker://../weights/a", "whose run id '..' cannot be one"),
        ("tinker://run/state/a", "must be one of weights, sampler_weights, external_weights"),
        ("tinker://run/weights/..", "a checkpoint's name has 1 to 255"),
        ("tinker://run/weights/a\n", "a checkpoint's name has 1 to 255"),
        ("tinker://run/weights/", "a checkpoint's name has 1 to 255"),
    ],
)
def test_a_wrong_path_is_a_sentence(text: object, told: str) -> None:
    with pytest.raises(ServingError) as caught:
        TinkerPath.parse(text, "model_path")
    assert caught.value.status == 400 and caught.value.param == "model_path"
    assert told in caught.value.message and caught.value.message.startswith("model_path: ")
    assert "\n" not in caught.value.message


def test_a_bare_checkpoint_id_needs_its_kind() -> None:
    with pytest.raises(ServingError) as caught:
        TinkerPath.of("run", "final")
    assert caught.value.status == 400 and "'weights/final'" in caught.value.message


def test_a_sampler_is_made_from_sampler_weights_only() -> None:
    path = TinkerPath("run", "sampler_weights", "a")
    assert for_sampling(path) is path
    with pytest.raises(ServingError) as caught:
        for_sampling(TinkerPath("run", "weights", "a"))
    assert caught.value.status == 400 and caught.value.param == "model_path"
    assert "tinker://run/weights/a is of kind weights" in caught.value.message
    assert "save_weights_for_sampler" in caught.value.message
