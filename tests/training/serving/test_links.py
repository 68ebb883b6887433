"""Signed links: for one thing, until they expire."""

import datetime
import os
import stat
from pathlib import Path

import pytest

from training.serving.errors import ServingError
from training.serving.links import SECRET_FILE, Links

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
PARTS = ["run:train:0", "external_weights/a", "adapter_config.json"]


class Clock:
    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> datetime.datetime:
        return self.time


def refused(links: Links, token: str | None, parts: list[str]) -> int:
    with pytest.raises(ServingError) as caught:
        links.check(token, parts)
    return caught.value.status


def test_a_link_is_good_for_what_it_was_signed_for() -> None:
    links = Links(now=Clock())
    token = links.sign(PARTS, NOON + HOUR)
    links.check(token, PARTS)
    assert token.replace("-", "").isalnum()
    for other in (
        ["run:train:1", *PARTS[1:]],
        [*PARTS[:2], "adapter_model.safetensors"],
        PARTS[:2],
        [*PARTS, ""],
        ["run:train:0", "external_weights", "a/adapter_config.json"],
        ["run:train:0external_weights/a", "adapter_config.json"],
    ):
        assert refused(links, token, other) == 401


def test_a_link_ends_on_time() -> None:
    clock = Clock()
    links = Links(now=clock)
    token = links.sign(PARTS, NOON + HOUR)
    clock.time = NOON + HOUR - datetime.timedelta(seconds=1)
    links.check(token, PARTS)
    clock.time = NOON + HOUR
    assert refused(links, token, PARTS) == 410


def test_time_zones_do_not_matter() -> None:
    links = Links(now=Clock())
    east = datetime.timezone(datetime.timedelta(hours=9))
    assert links.sign(PARTS, (NOON + HOUR).astimezone(east)) == links.sign(PARTS, NOON + HOUR)


def test_a_link_cannot_be_made_or_prolonged() -> None:
    links = Links(now=Clock())
    token = links.sign(PARTS, NOON + HOUR)
    expires, signature = token.split("-")
    later = f"{int(expires) + 3600}-{signature}"
    flipped = f"{expires}-{signature[:-1]}{'0' if signature[-1] != '0' else '1'}"
    wrong = [later, flipped, f"{expires}-", f"-{signature}", signature, "", None, "x", token + "\n"]
    wrong += [token.upper(), f"{'9' * 400}-{signature}", "é", Links().sign(PARTS, NOON + HOUR)]
    for forged in wrong:
        if forged != token:
            assert refused(links, forged, PARTS) == 401, forged


def test_links_of_a_store_stay_good_over_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    token = Links.of_store(folder).sign(PARTS, NOON + HOUR)
    # signed for a time long gone, but by this store
    assert refused(Links.of_store(folder), token, PARTS) == 410
    assert refused(Links.of_store(tmp_path / "other"), token, PARTS) == 401
    file = folder / SECRET_FILE
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = file.read_text().strip()
    assert secret not in token and secret not in repr(Links.of_store(folder))
    for short in ("", "qwerty", secret[:31]):
        file.write_text(f"{short}\n")
        with pytest.raises(ValueError, match="at least 32 are needed; remove this file") as caught:
            Links.of_store(folder)
        assert not short or short not in str(caught.value).replace(str(file), "")
