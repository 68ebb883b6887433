"""What `--help` shows of a config: groups, short types, folds, and one setting by its name."""

import enum
from pathlib import Path
from typing import Any, Literal

import chz
import pytest

from utils.config.entrypoint import ConfigError, config_help
from utils.config.help import (
    EVALUATION,
    OUTPUT,
    WHAT,
    group,
    grouped_fields,
    nested_docs,
    short_type,
    wrapped_docstring,
)


class Colour(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@chz.chz(typecheck=True)
class Role:
    model: str | None = chz.field(default=None, doc="who")
    timeout: float = chz.field(default=30.0, doc="seconds")


@chz.chz(typecheck=True)
class Net:
    """A network."""

    width: int = chz.field(default=8, doc="of each layer")


@chz.chz(typecheck=True)
class Wide(Net):
    """A network that is wide. Not deep."""

    factor: int = chz.field(default=4, doc="how much wider")


@chz.chz(typecheck=True)
class Deep(Net):
    depth: int = chz.field(default=2, doc="layers")


@chz.chz(typecheck=True)
class Config:
    steps: int = chz.field(default=3, doc="how many")
    source: Path = chz.field(doc="what is read", metadata={"must_exist": True} | WHAT)

    log_path: Path | None = chz.field(default=None, doc="run directory", metadata=OUTPUT)
    sinks: list[str] = chz.field(default_factory=lambda: ["a", "b"], doc="where to")

    judge: Role = chz.field(default_factory=Role, doc="who judges", metadata=group("Of our own"))
    second: Role | None = chz.field(default=None, doc="default: nobody")
    net: Net = chz.field(blueprint_unspecified=Wide, doc="what is trained")

    loss: Literal["ppo", "cispo"] = chz.field(default="ppo", doc="of it", metadata=EVALUATION)
    mode: Literal["x", "y"] | None = chz.field(default=None, doc="x, or y (slow); default: ours")
    colour: Colour = chz.field(default=Colour.RED, doc="of the page")
    flag: bool = chz.field(default=False)


@chz.chz(typecheck=True)
class Named:
    model_name: str = chz.field(default="embedded", doc="what is trained")


@chz.chz(typecheck=True)
class Domain:
    size: int = chz.field(default=1, doc="of a problem")
    steps: int = chz.field(default=4, doc="of the domain", metadata=EVALUATION)
    temperature: float = chz.field(default=0.5)


Joined = chz.chz(typecheck=True)(type("Joined", (Config, Domain), {}))


def page(*argv: str, target: Any = Config, **options: Any) -> str:
    return config_help(target, argv, script="train", **options)


def test_the_whole_page() -> None:
    shown = page("judge.model=x", doc="Trains.\n\n    uv run scripts/train.py\n")
    assert shown.partition("Settings are")[0] == (
        """\
Trains.

    uv run scripts/train.py

What to run
  source    path    what is read; required
  steps     int     how many; default: 3

Of our own
  judge             who judges; `--help judge` shows its 2 settings
                    judge.model = x (from command line)
  second            default: nobody; `--help second` shows its 2 settings
  net               Wide or Deep; what is trained; default: Wide; `--help net`
                    shows the settings of each

Evaluation
  loss      choice  ppo or cispo; of it; default: ppo
  mode      choice  x, or y (slow); default: ours
  colour    choice  red or dark-blue; of the page; default: red
  flag      bool    default: false

Output
  log_path  path    run directory
  sinks     list    where to; default: a, b

"""
    )


def test_a_joined_config_keeps_the_groups_of_both() -> None:
    assert grouped_fields(Joined) == [
        ("steps", "What to run"),
        ("source", "What to run"),
        ("log_path", "Output"),
        ("sinks", "Output"),
        ("judge", "Of our own"),
        ("second", "Of our own"),
        ("net", "Of our own"),
        ("loss", "Evaluation"),
        ("mode", "Evaluation"),
        ("colour", "Evaluation"),
        ("flag", "Evaluation"),
        ("size", "What to run"),
        ("temperature", "Evaluation"),
    ]
    assert "  size         int     of a problem; default: 1" in page(target=Joined)


def test_one_setting_and_what_is_folded_under_it() -> None:
    assert page(topics=["loss"]) == "  loss  choice  ppo or cispo; of it; default: ppo\n"
    assert page("judge.timeout=5", topics=["judge"]) == (
        "  judge    who judges\n\n"
        "  judge.model    text   who\n"
        "  judge.timeout  float  seconds; = 5 (from command line)\n"
    )
    assert page(topics=["second"]).count("second.") == 2
    assert page("...timeout=7", topics=["judge.timeout"]) == (
        "  judge.timeout  float  seconds; = 7 (from command line)\n"
    )
    both = page(topics=["net"])
    assert "net=Wide: A network that is wide. Not deep\n" in both
    assert "net.factor" in both and "net=Deep\n" in both and "net.depth" in both
    chosen = page("net=Deep", topics=["net"])
    assert "net.depth" in chosen and "net.factor" not in chosen
    words = " ".join(page("net=Deep").split())
    assert "= Deep (from command line); `--help net` shows its 2 settings" in words


@chz.chz
class Deciding:
    other: Role = chz.field(
        default_factory=Role, doc="another", metadata=nested_docs(model="who else, or nobody")
    )


def test_a_field_may_say_what_its_own_mean_there() -> None:
    assert page(target=Deciding, topics=["other"]) == (
        "  other    another\n\n"
        "  other.model    text   who else, or nobody\n"
        "  other.timeout  float  seconds; default: 30.0\n"
    )


def test_a_setting_by_its_other_name() -> None:
    assert page(topics=["model_dir"], target=Named) == page(topics=["model_name"], target=Named)


@pytest.mark.parametrize(
    ("topic", "told"),
    [
        ("jugde", "--help jugde: there is no such setting. Did you mean 'judge'? Known: steps"),
        ("judge.modle", "Did you mean 'judge.model'? Known: judge.model, judge.timeout"),
        ("steps.x", "steps has no settings of its own"),
    ],
)
def test_a_topic_that_is_no_setting(topic: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        page(topics=[topic])
    assert told in str(caught.value)


def test_problems_stand_first_and_pages_are_as_wide_as_asked() -> None:
    for width in (60, 80, 120):
        shown = page("stps=1", doc="Trains " + "many words " * 20, width=width)
        assert max(map(len, shown.split("\n"))) <= width
        assert shown.startswith("WARNING: stps (from command line): unknown key.")
    assert "\033[1msteps\033[0m" in page(color=True) and "\033" not in page()


@pytest.mark.parametrize(
    ("annotation", "word"),
    [
        (int, "int"),
        (str | None, "text"),
        (Path | None, "path"),
        (list[int], "list"),
        (tuple[str, ...], "list"),
        (dict[str, float], "map"),
        (int | Literal["inf"], "int"),
        (Literal["a"] | None, "choice"),
        (int | str, "int or text"),
        (Role | None, ""),
        (Any, "any"),
    ],
)
def test_short_types(annotation: Any, word: str) -> None:
    assert short_type(annotation) == word


def test_commands_of_a_docstring_are_cut_where_a_shell_goes_on() -> None:
    doc = """Does it
all.

    uv run a.py 'x={"a b": 1}' y=2 \\
        z=3
    uv run b.py
"""
    assert wrapped_docstring(doc, 30) == [
        "Does it all.",
        "",
        "    uv run a.py \\",
        "        'x={\"a b\": 1}' y=2 \\",
        "        z=3",
        "    uv run b.py",
        "",
    ]
