"""What is done so that one self-edit after the other leaves the earlier ones known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from training.domains.knowledge.gate import BUDGETS, GateKind
from utils.config.errors import ConfigError

Kind = Literal["merge", "replay", "gate", "distill", "library", "joint"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_REPLAYED = 4
_FORMS = f"merge, replay=LINES, gate={'|'.join(BUDGETS)}, distill, library, joint"


@dataclass(frozen=True)
class Method:
    """`label` is what it is called.

    - merge: each self-edit trains an adapter on top of all before, as SEAL's merging into the base
      model does, but exactly
    - replay: as merge, with `num_replayed` texts of each earlier self-edit among the new ones
    - gate: as merge, but scaled down, or refused, where it costs too much of what was known
    - distill: as merge, but the targets are what the model before says with the passage before it
    - library: an adapter for each passage, and for each question the one of the passage that shares
      the most with it (BM25)
    - joint: no sequence, all passages in one adapter at the end
    """

    label: str
    kind: Kind
    num_replayed: int = 0
    gate: GateKind | None = None


def parse_method(text: str) -> Method:
    """Of merge, replay=LINES, gate=em, ...; `replay` alone takes 4 lines, `gate` accuracy (em).
    Raises ConfigError for what is none."""
    name, given, option = text.partition("=")
    kind = next((known for known in KINDS if known == name), None)
    if kind is None:
        raise ConfigError(f"methods: {text!r} is none; there are {_FORMS}")
    if kind == "replay":
        if given and not (option.isdecimal() and int(option) > 0):
            raise ConfigError(
                f"methods: {text!r}; replay=LINES needs a whole number from 1: how many lines of "
                "each earlier self-edit are trained on again"
            )
        return Method(text, kind, num_replayed=int(option) if given else _REPLAYED)
    if kind == "gate":
        gate = next((known for known in BUDGETS if known == (option or "em")), None)
        if gate is None or (given and not option):
            raise ConfigError(
                f"methods: {text!r}; a gate goes by one of {', '.join(BUDGETS)}: accuracy, nats of "
                "right answers, divergence of answers"
            )
        return Method(text, kind, gate=gate)
    if given:
        raise ConfigError(f"methods: {text!r}; {kind} takes no option, there are {_FORMS}")
    return Method(text, kind)
