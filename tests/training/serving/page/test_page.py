"""The server's page in a headless browser: keys, what is shown, talks, and texts that want to be
HTML."""

import re
from collections.abc import Iterator

import pytest
from browser import CHROMIUM, Browser
from page_site import EVIL, KEY, RUN, Site, ago, checkpoint, path_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

IN = "!document.querySelector('#inside').hidden"
LISTED = "document.querySelector('#model-0').options.length > 0"
DONE = "document.querySelector('#send').innerText === 'Send'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def served() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def site(served: Site, browser: Browser) -> Iterator[Site]:
    """As at the start. No page of it runs into an error, breaks its policy, or asks another."""
    served.reset()
    site = served
    yield site
    refused = [problem for problem in browser.problems if "status of 4" not in problem]
    assert refused == []
    assert {url for url in browser.requests if not url.startswith(site.url)} <= {"about:blank"}
    assert browser.value("document.title") == "Autodidact server"


def enter(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}#key={KEY}")
    browser.wait(f"{IN} && {LISTED}")


def say(browser: Browser, words: str) -> None:
    browser.type("#words", words)
    browser.press("Enter")


def shown(browser: Browser, selector: str) -> list[str]:
    return browser.value(
        f"[...document.querySelectorAll({selector!r})].map((element) => element.innerText)"
    )


# -------------------------------------------------------------------------------------------- keys


def test_nothing_is_shown_without_the_key(browser: Browser, site: Site) -> None:
    site.checkpoints = [checkpoint("secret")]
    browser.open(site.url)
    browser.wait("!document.querySelector('#login').hidden")
    assert browser.value("document.querySelector('#inside').children.length") == 0
    page = browser.value("fetch('/').then((reply) => reply.text())")
    for secret in ("secret", "rl-loop", RUN, KEY):
        assert secret not in page
    # and a wrong key is told
    browser.type("#key", "tml-wrong-0123456789")
    browser.press("Enter")
    browser.wait("document.querySelector('#login-error').innerText !== ''")
    assert browser.text("#login-error") == "the API key is not one of this server's"
    assert browser.value("sessionStorage.length") == 0
    browser.type("#key", KEY)
    browser.press("Enter")
    browser.wait(f"{IN} && {LISTED}")
    assert browser.value("document.querySelector('#login').offsetParent === null")
    assert all(key == KEY for path, key in site.keys_seen if path == "/v1/models")


def test_a_key_with_letters_that_no_header_takes_is_told(browser: Browser, site: Site) -> None:
    told = "that is no API key: a key has letters, digits and signs of ASCII, and no blanks"
    browser.open(site.url)
    browser.wait("!document.querySelector('#login').hidden")
    browser.type("#key", "tml-ключ-0123456789")
    browser.press("Enter")
    browser.wait("document.querySelector('#login-error').innerText !== ''")
    assert browser.text("#login-error") == told
    # in the address too
    browser.open(f"{site.url}#key=tml-%D0%BA%D0%BB%D1%8E%D1%87-0123456789")
    browser.wait("document.querySelector('#login-error').innerText !== ''")
    assert browser.text("#login-error") == told and browser.value("location.href") == site.url
    assert browser.value("sessionStorage.length") == 0
    browser.type("#key", KEY)
    browser.press("Enter")
    browser.wait(f"{IN} && {LISTED}")


def test_the_key_in_the_address_is_not_sent_in_it_and_does_not_stay(
    browser: Browser, site: Site
) -> None:
    enter(browser, site)
    assert browser.value("location.href") == site.url
    assert all("key=" not in url or "#key=" in url for url in browser.requests)
    assert ("/", None) in site.keys_seen and ("/page/status", KEY) in site.keys_seen
    # a reload goes on with it
    browser.go(site.url)
    browser.wait(f"{IN} && {LISTED}")


def test_forgetting_the_key_takes_away_what_was_shown(browser: Browser, site: Site) -> None:
    enter(browser, site)
    browser.click("#leave")
    assert browser.value("document.querySelector('#inside').children.length") == 0
    assert browser.value("sessionStorage.length") == 0
    assert "rl-loop" not in browser.value("document.body.innerHTML")


def test_a_key_that_is_refused_later_ends_the_page(browser: Browser, site: Site) -> None:
    enter(browser, site)
    site.refusal["/page/status"] = (401, {"detail": "the API key is not one of this server's"})
    browser.wait("!document.querySelector('#login').hidden")
    assert browser.value("document.querySelector('#inside').children.length") == 0


# ------------------------------------------------------------------------------------ what is shown


def test_what_runs_now(browser: Browser, site: Site) -> None:
    enter(browser, site)
    tiles = dict(zip(shown(browser, ".tile .label"), shown(browser, ".tile .value"), strict=True))
    assert tiles == {
        "Clients": "2",
        "Requests running": "3",
        "Your open requests": "5",
        "Models in memory": "2",
        "Sampling": "412",
        "Training": "0",
    }
    assert "1 of them yours" in browser.text("#tiles") and "14 waiting" in browser.text("#tiles")
    assert "1 sampler" in browser.text("#tiles")
    assert browser.text("#since") == "up for 1 h, serving embedded"
    row = browser.text("#clients tbody tr")
    assert "0ac02541…cd1a9d4c rl-loop" in row and "0.38.0" in row and "12 min ago" in row
    site.clients_of_anne = []
    site.state["sampled_per_second"] = 9.51
    browser.wait("document.querySelector('#clients').innerText.startsWith('No client')")
    assert "9.5" in shown(browser, ".tile .value")
    assert browser.value("document.querySelectorAll('.tile polyline').length") == 2


def test_runs_and_checkpoints(browser: Browser, site: Site) -> None:
    enter(browser, site)
    assert browser.text("#runs") == "Nothing was trained here yet."
    assert browser.text("#checkpoints") == "Nothing was saved yet."
    site.checkpoints = [checkpoint("final", minutes=2), checkpoint("000010", "weights", minutes=90)]
    site.checkpoints[1]["expires_at"] = ago(-60 * 24 * 3 - 1)
    site.runs = [
        {
            "training_run_id": RUN,
            "base_model": "embedded",
            "model_owner": "anne",
            "is_lora": True,
            "lora_rank": 32,
            "last_request_time": ago(1),
            "last_checkpoint": site.checkpoints[1],
            "last_sampler_checkpoint": site.checkpoints[0],
            "user_metadata": {"recipe": "sl"},
        }
    ]
    # begun later, and asked for something longer ago
    site.runs.insert(0, {**site.runs[0], "last_request_time": ago(5)})
    enter(browser, site)
    assert "5 min ago" in shown(browser, "#runs tbody tr")[1]
    run = browser.text("#runs tbody tr").split("\t")
    assert run == [
        "0ac02541…:train:0",
        "embedded",
        "32",
        "1 min ago",
        "sampler_weights/final 2 min ago",
        "recipe=sl",
    ]
    first, second = shown(browser, "#checkpoints tbody tr")
    assert first.split("\t")[:6] == [
        "sampler_weights/final",
        "0ac02541…:train:0",
        "sampler",
        "12.3 MB",
        "2 min ago",
        "never",
    ]
    assert second.split("\t")[4:6] == ["1 h ago", "in 3 d"]
    # only what can be sampled from can be tried
    assert first.count("Try") == 1 and "Try" not in second
    assert browser.text("#checkpoints-note") == "2 checkpoints"


def test_long_lists_come_in_pages(browser: Browser, site: Site) -> None:
    site.checkpoints = [checkpoint(f"{at:03}", minutes=at) for at in range(45)]
    enter(browser, site)
    assert len(shown(browser, "#checkpoints tbody tr")) == 20
    browser.click("#checkpoints > button")
    browser.wait("document.querySelectorAll('#checkpoints tbody tr').length === 45")


def test_a_server_that_is_away_is_told_and_comes_back(browser: Browser, site: Site) -> None:
    enter(browser, site)
    site.refusal["/page/status"] = (429, {"detail": "too busy"})
    browser.wait("document.querySelector('#state-text').innerText === 'too busy'")
    assert browser.value(IN)
    site.refusal.clear()
    browser.wait("document.querySelector('#state-text').innerText === 'connected'")


# -------------------------------------------------------------------------------------------- talks


def test_a_checkpoint_stands_beside_its_base_model(browser: Browser, site: Site) -> None:
    site.checkpoints = [checkpoint("old", minutes=9), checkpoint("new", minutes=1)]
    site.answers = {
        "embedded": ["I am ", "the base."],
        path_of("new"): [{"reasoning_content": "hm"}, "I was ", "trained."],
    }
    enter(browser, site)
    assert browser.value("document.querySelector('#model-0').value") == "embedded"
    assert browser.value("document.querySelector('#model-1').value") == path_of("new")
    say(browser, "Who are you?")
    browser.wait(f"document.querySelectorAll('.talk .note').length === 2 && {DONE}")
    assert shown(browser, "#talk-0 .said") == ["Who are you?", "I am the base."]
    assert shown(browser, "#talk-1 .said") == ["Who are you?", "hm", "I was trained."]
    note = browser.text("#talk-0 .note")
    assert re.fullmatch(r"2 tokens · [\d,.]+ / s · cut at the limit", note), note
    # each goes on with its own talk
    say(browser, "And now?")
    browser.wait(f"document.querySelectorAll('.talk .note').length === 4 && {DONE}")
    asked = {body["model"]: body for _kind, body in site.asked[2:]}
    assert asked["embedded"]["messages"] == [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I am the base."},
        {"role": "user", "content": "And now?"},
    ]
    assert asked[path_of("new")]["messages"][1]["content"] == "I was trained."
    assert asked["embedded"]["temperature"] == 0.7 and asked["embedded"]["max_tokens"] == 256
    assert "seed" not in asked["embedded"] and asked["embedded"]["stream"] is True


def test_any_checkpoint_can_be_tried(browser: Browser, site: Site) -> None:
    site.checkpoints = [checkpoint("new", minutes=1), checkpoint("old", minutes=9)]
    site.answers = {"embedded": ["a"], path_of("old"): ["b"]}
    enter(browser, site)
    browser.value(
        "document.querySelectorAll('#checkpoints tbody tr')[1].querySelector('button').click()"
    )
    assert browser.value("document.querySelector('#model-1').value") == path_of("old")
    browser.value("document.querySelector('#seed').value = '7'")
    browser.click("#plain")
    say(browser, "Once upon")
    browser.wait(f"document.querySelectorAll('.talk .note').length === 2 && {DONE}")
    kinds = {kind for kind, _body in site.asked}
    bodies = {body["model"]: body for _kind, body in site.asked}
    assert kinds == {"plain"} and set(bodies) == {"embedded", path_of("old")}
    assert bodies["embedded"]["prompt"] == "Once upon" and bodies["embedded"]["seed"] == 7
    assert shown(browser, "#talk-1 .said.model") == ["b"]


def test_a_model_alone(browser: Browser, site: Site) -> None:
    site.answers = {"embedded": ["alone"]}
    enter(browser, site)
    assert browser.value("document.querySelector('#model-1').value") == ""
    say(browser, "   ")
    say(browser, "hello")
    browser.wait(f"document.querySelectorAll('.talk .note').length === 1 && {DONE}")
    assert (
        shown(browser, "#talk-0 .said.model") == ["alone"] and shown(browser, "#talk-1 .said") == []
    )
    assert len(site.asked) == 1


def test_a_talk_can_be_stopped_and_begun_anew(browser: Browser, site: Site) -> None:
    site.answers = {"embedded": ["begun"]}
    site.gate.clear()
    enter(browser, site)
    say(browser, "go on")
    browser.wait("document.querySelector('#talk-0').innerText.includes('begun')")
    browser.click("#send")
    browser.wait("document.querySelector('#talk-0').innerText.includes('stopped')")
    assert browser.text("#send") == "Send"
    site.gate.set()
    say(browser, "again")
    browser.wait(f"document.querySelectorAll('.talk .note').length === 2 && {DONE}")
    assert [m["content"] for m in site.asked[1][1]["messages"]] == ["go on", "begun", "again"]
    browser.click("#fresh")
    assert browser.text("#talk-0") == ""
    say(browser, "new")
    browser.wait(f"document.querySelectorAll('.talk .note').length === 1 && {DONE}")
    assert [m["content"] for m in site.asked[2][1]["messages"]] == ["new"]


def test_errors_stand_where_the_answer_would(browser: Browser, site: Site) -> None:
    site.checkpoints = [checkpoint("a")]
    site.answers = {"embedded": ["begun", ValueError("the engine <b>stopped</b>")]}
    site.answers[path_of("a")] = []
    enter(browser, site)
    say(browser, "x")
    browser.wait("document.querySelectorAll('.talk .error, #talk-1 .note').length === 2")
    assert shown(browser, "#talk-0 .said.model") == ["begun"]
    assert browser.text("#talk-0 .error") == "the engine <b>stopped</b>"
    site.refusal["/v1/chat/completions"] = (400, {"error": {"message": "max_tokens: got 0"}})
    say(browser, "y")
    browser.wait("document.querySelectorAll('.talk .error').length === 3")
    assert shown(browser, ".talk .error")[-1] == "max_tokens: got 0"
    # what failed is no part of the talk, and its words can be sent again
    browser.wait("document.querySelector('#words').value === 'y'")
    browser.value("document.querySelector('#words').value = ''")
    site.refusal.clear()
    site.answers["embedded"] = ["fine"]
    say(browser, "z")
    browser.wait(f"document.querySelectorAll('#talk-0 .note').length === 1 && {DONE}")
    last = next(body for _kind, body in reversed(site.asked) if body["model"] == "embedded")
    assert [m["content"] for m in last["messages"]] == ["z"]


def test_enter_sends_and_shift_enter_does_not(browser: Browser, site: Site) -> None:
    site.answers = {"embedded": ["ok"]}
    enter(browser, site)
    browser.type("#words", "one")
    browser.press("Enter", shift=True)
    browser.type("#words", "two")
    browser.press("Enter")
    browser.wait(f"document.querySelectorAll('.talk .note').length === 1 && {DONE}")
    assert site.asked[0][1]["messages"][0]["content"] == "one\ntwo"


# ------------------------------------------------------------------------------------------- safety


def test_no_text_of_anybody_becomes_html(browser: Browser, site: Site) -> None:
    site.checkpoints = [{**checkpoint("a"), "checkpoint_id": EVIL, "checkpoint_type": EVIL}]
    site.runs = [
        {
            "training_run_id": EVIL,
            "base_model": EVIL,
            "is_lora": True,
            "lora_rank": 1,
            "last_request_time": ago(1),
            "user_metadata": {EVIL: EVIL},
        }
    ]
    site.state["base_models"] = [EVIL]
    for field in ("name", "sdk_version", "session_id"):
        site.clients_of_anne[0][field] = EVIL
    site.answers = {
        "embedded": [EVIL, {"reasoning_content": EVIL}],
        path_of("a"): [ValueError(EVIL)],
    }
    enter(browser, site)
    say(browser, EVIL)
    browser.wait("document.querySelectorAll('#talk-0 .note, #talk-1 .error').length === 2")
    assert shown(browser, "#talk-0 .said") == [EVIL, EVIL, EVIL]
    assert browser.text("#talk-1 .error") == EVIL
    assert browser.value("document.querySelectorAll('img, #inside script').length") == 0
    # and if it did, it would not run
    browser.value(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"owned=1\">')"
    )
    assert browser.value("typeof owned") == "undefined"
    browser.problems.clear()


@pytest.mark.parametrize("width", [1100, 390])
def test_nothing_sticks_out_of_the_window(browser: Browser, site: Site, width: int) -> None:
    site.checkpoints = [checkpoint("x" * 255), checkpoint("b", "weights")]
    site.answers = {"embedded": ["word" * 500], path_of("x" * 255): ["a " * 2000]}
    browser.open(f"{site.url}#key={KEY}", width=width)
    browser.wait(f"{IN} && {LISTED}")
    say(browser, "y" * 400)
    browser.wait(f"document.querySelectorAll('.talk .note').length === 2 && {DONE}")
    assert browser.value("document.documentElement.scrollWidth") <= width
