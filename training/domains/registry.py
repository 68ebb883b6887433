"""Domains by name; each is imported when it is asked for."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import chz

from training.api import ServiceClient
from training.domains.base import Domain
from training.domains.checks import check_domain
from training.domains.own import (
    FORMS,
    clashes,
    is_own,
    load_own,
    making_told_as_own,
    own_file,
    told_as_own,
)
from utils.config.entrypoint import ConfigError, given_value, raise_problems
from utils.config.layers import PRESET_KEY


class _Entry(NamedTuple):
    """Where the config class is, and the class that does the work."""

    module: str
    config_class: str
    domain_class: str


Entries = dict[str, _Entry]
RL_DOMAINS: Entries = {
    "arc": _Entry("training.domains.arc.domain", "ArcConfig", "ArcDomain"),
    "gsm8k": _Entry("training.domains.gsm8k", "Gsm8kConfig", "Gsm8kDomain"),
    "gym": _Entry("training.domains.gym", "GymConfig", "GymDomain"),
    "knowledge": _Entry(
        "training.domains.knowledge.domain", "KnowledgeDomainConfig", "KnowledgeDomain"
    ),
}
TTT_DOMAINS: Entries = {
    "bbh": _Entry("training.domains.bbh.ttt", "BBHConfig", "BBHTestTime"),
    "arc": _Entry("training.domains.arc.ttt", "ArcTTTConfig", "ArcTestTime"),
}


# of a setting that takes a name of RL_DOMAINS or an own domain
RL_INPUT = {"input": own_file}


def domain_config_class(name: str, entries: Entries = RL_DOMAINS) -> type[Any]:
    """The chz class that configures the domain; ValueError for an unknown name."""
    if entries is RL_DOMAINS and is_own(name):
        return load_own(name).config_class
    entry = _entry(name, entries)
    return getattr(import_module(entry.module), entry.config_class)


def make_domain(name: str, config: Any, service: ServiceClient) -> Domain:
    """The domain, ready to use; raises ValueError for a config of another domain, and for an own
    domain that is not what base.Domain says."""
    expected = domain_config_class(name)
    if not isinstance(config, expected):
        raise ValueError(
            f"domain {name!r} takes a config of class {expected.__name__}, "
            f"got {type(config).__name__}"
        )
    if is_own(name):
        domain_class = load_own(name).domain_class
    else:
        entry = _entry(name, RL_DOMAINS)
        domain_class = getattr(import_module(entry.module), entry.domain_class)
    with told_as_own(name):
        domain = domain_class(config, service)
        check_domain(domain, name)
    return domain


def make_ttt(name: str, config: Any) -> Any:
    """What runs test-time training in the domain (training.ttt.TestTime)."""
    entry = _entry(name, TTT_DOMAINS)
    return getattr(import_module(entry.module), entry.domain_class)(config)


def with_domain_fields(
    base: type[Any],
    argv: Sequence[str],
    *,
    default: str,
    entries: Entries = RL_DOMAINS,
    layers: Sequence[str] = ("config_file",),
    script: str | None = None,
) -> type[Any]:
    """`base`, a chz class with a `domain` field, joined with the fields of the domain that the
    command line (else a YAML layer, else a preset of `script`, else `default`) names, so that all
    are set side by side. `script` is the file that defines `base` where none is given.

    Raises ConfigError for an unknown domain, and for an own one whose settings have names of the
    script's.
    """
    # what is wrong with the layers is told with all other problems
    given = given_value(base, argv, "domain", layers=layers, script=script)
    name = default if given is None else str(given.value)
    try:
        domain_config = domain_config_class(name, entries)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if is_own(name):
        raise_problems(clashes(domain_config, base, (*layers, PRESET_KEY, "meta")))
    joined = type("Config", (base, domain_config), {"__doc__": base.__doc__})
    made = chz.chz(typecheck=True)(joined)
    return making_told_as_own(name, made) if is_own(name) else made


def _entry(name: str, entries: Entries) -> _Entry:
    if name not in entries:
        own = f", and {FORMS} of your own" if entries is RL_DOMAINS else ""
        raise ValueError(f"domain={name!r}: known are {', '.join(entries)}{own}")
    return entries[name]
