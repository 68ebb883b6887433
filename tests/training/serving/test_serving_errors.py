"""The errors of both faces of the server."""

import pytest

from training.serving import errors


def test_an_error_holds_what_both_faces_render() -> None:
    error = errors.ServingError(400, "rank: got 999", param="rank", code="bad_rank")
    assert (error.status, error.message, error.param) == (400, "rank: got 999", "rank")
    assert (error.code, error.retry_after, str(error)) == ("bad_rank", None, "rank: got 999")


@pytest.mark.parametrize(
    ("error", "status", "category"),
    [
        (errors.bad_request("x"), 400, "user"),
        (errors.unauthorized("x"), 401, "user"),
        (errors.not_found("x"), 404, "user"),
        (errors.gone("x"), 410, "user"),
        (errors.too_large("x"), 413, "user"),
        (errors.wrong_media_type("x"), 415, "user"),
        (errors.busy("x", 2.5), 429, "user"),
        (errors.server_fault("x"), 500, "server"),
    ],
)
def test_the_status_and_whose_fault(error: errors.ServingError, status: int, category: str) -> None:
    assert (error.status, error.category) == (status, category)


def test_clients_would_repeat_a_409_for_minutes_so_there_is_none() -> None:
    with pytest.raises(AssertionError):
        errors.ServingError(409, "conflict")


def test_not_found_tells_the_first_twenty_that_exist() -> None:
    names = [f"m{i}" for i in range(23)]
    message = errors.not_found("model 'x'", names, param="model").message
    assert message.startswith("model 'x': not found; there is m0, m1")
    assert "m19 and 3 more" in message and "m20" not in message
    assert errors.not_found("model 'x'").message == "model 'x': not found"


def test_busy_says_when_to_come_back() -> None:
    assert errors.busy("the queue is full", 2.5).retry_after == 2.5


def test_what_was_named_is_told_back_in_short() -> None:
    message = errors.not_found(f"model {'y' * 9000!r}", ["a"]).message
    assert len(message) < 400 and message.endswith("... (9008 characters): not found; there is a")
