"""Whether a model runs right here, and how: the engine against the model's own code.

The reference is the model under attn_implementation="eager", as rows of a batch, without a cache.
Held against it are sequences that share a pass and a prefix, and decoded tokens. The modes of
bodies.py are tried in order; what no mode gets right is refused.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from training.backends.local.attention import DecodeAttention, SegmentAttention
from training.backends.local.batching import Packing, Tree, pack, to_device
from training.backends.local.linear import LoraPass, NotAdaptableError

logger = logging.getLogger(__name__)

_LENGTH, _SHARED, _DECODED = 9, 4, 3


class Mode(NamedTuple):
    """`name` is what notes and messages say; packed modes have no other settings.

    `eager`: with the model's plain attention. Its faster one leaves out what it cannot do in some
    models (soft caps of Gemma 2).
    """

    name: str
    packed: bool = False
    eager: bool = True
    padding: float = 1.0
    cached: bool = True


MODES = (
    Mode("packed", packed=True),
    Mode("in rows", eager=False, padding=1.25),
    Mode("in rows, eager", padding=1.25),
    Mode("in rows of one length, eager"),
    Mode("in rows without a cache, eager", padding=1.25, cached=False),
    Mode("in rows of one length without a cache, eager", cached=False),
)


@dataclass(frozen=True)
class Probe:
    """Two sequences with their first tokens in common, and the model's own logits [T, vocab]."""

    sequences: list[list[int]]
    logits: list[torch.Tensor]

    @property
    def finite(self) -> bool:
        return all(bool(own.isfinite().all()) for own in self.logits)

    def tolerance(self, dtype: torch.dtype) -> float:
        """In nats; differences grow with the logits."""
        largest = max(own.abs().max().item() for own in self.logits)
        return (5e-5 if dtype == torch.float32 else 0.1) * max(1.0, largest)


def take_probe(model: Any, vocab_size: int, device: torch.device) -> Probe:
    """Of a model that has not been touched, under its eager attention."""
    count = 2 * _LENGTH - _SHARED
    # ids from the whole vocabulary, none twice in a small one
    tokens = [1 + (i * 7919 + 5) % (vocab_size - 1) for i in range(count)]
    first, second = tokens[:_LENGTH], [*tokens[:_SHARED], *tokens[_LENGTH:]]
    rows = torch.tensor([first, second], device=device)
    return Probe([first, second], list(model(rows, use_cache=False).logits.float()))


@torch.no_grad()
def largest_difference(decoder: Any, probe: Probe) -> float:
    """Of logprobs [nats], over packed, shared and decoded positions; NaN where anything is."""
    # (sequence, its first position, hidden states of it and those that follow)
    computed: list[tuple[int, int, torch.Tensor]] = []
    first, second = probe.sequences
    shares = decoder.shares_prefixes
    if not shares:
        # a pass without a cache, and padded where the mode pads
        packing = _packing([first, second[:-2], second[:-2]], shares)
        hidden = _hidden(decoder, packing)
        computed += [(s, 0, hidden[packing.index[i]]) for i, s in enumerate((0, 1, 1))]
    # those of one length are joined in one cache, where there are no ragged ones
    ends = (_LENGTH - _DECODED, _LENGTH - _DECODED - shares, _LENGTH - _DECODED)
    prompts = [s[:end] for s, end in zip((first, second, second), ends, strict=True)]
    packing = _packing(prompts, shares)
    cache = decoder.new_cache()
    hidden = _hidden(decoder, packing, cache)
    computed += [(s, 0, hidden[packing.index[i]]) for i, s in enumerate((0, 1, 1))]
    for sequence, at, row in _decoded(decoder, probe.sequences, packing, cache):
        computed.append((sequence, at, row.unsqueeze(0)))
    # the head is read once
    got = decoder.logits(torch.cat([rows for _, _, rows in computed]), LoraPass())
    wanted = torch.cat([probe.logits[s][at : at + len(rows)] for s, at, rows in computed])
    # max() gives NaN where there is one
    return (got.log_softmax(-1) - wanted.log_softmax(-1)).abs().max().item()


def _packing(sequences: list[list[int]], shares: bool) -> Packing:
    """The first two share their prefix where the body can; the third is whole."""
    alone = [Tree(0, sequence, [[]], [i]) for i, sequence in enumerate(sequences)]
    if not shares:
        return pack(alone)
    branches = [sequence[_SHARED:] for sequence in sequences[:2]]
    return pack([Tree(0, sequences[0][:_SHARED], branches, [0, 1]), alone[2]])


def _hidden(decoder: Any, packing: Packing, cache: Any = None) -> torch.Tensor:
    tokens, positions = (
        to_device(array, decoder.device) for array in (packing.tokens, packing.positions)
    )
    return decoder.hidden(tokens, positions, SegmentAttention(packing.segments, cache), LoraPass())


def _decoded(
    decoder: Any, sequences: list[list[int]], packing: Packing, cache: Any
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(sequence, position, hidden state [hidden]) of rows that go on along their sequences: one
    from each of the first two prompts, and a group of two from the third, which loses one."""
    device = decoder.device
    index = [to_device(packing.index[i], device) for i in range(3)]
    shared = _SHARED if decoder.shares_prefixes else 0
    singles = cache.single_blocks(
        index[0][:shared] if shared else None, [index[0][shared:], index[1][shared:]]
    )
    blocks = [(list(members), block) for members, block in singles]
    blocks.append(([2, 2], cache.group_block(2, index[2])))
    for step in range(_DECODED):
        if step == _DECODED - 1:
            blocks[-1][1].keep([1])
            blocks[-1] = ([2], blocks[-1][1])
        for _, block in blocks:
            block.begin_step()
        prompts = [member for members, _ in blocks for member in members]
        rows = [(min(p, 1), len(packing.index[p]) + step) for p in prompts]
        tokens = torch.tensor([sequences[s][at] for s, at in rows], device=device)
        positions = torch.tensor([at for _, at in rows], device=device)
        plan = DecodeAttention([block for _, block in blocks])
        hidden = decoder.hidden(tokens, positions, plan, LoraPass())
        for _, block in blocks:
            block.end_step()
        for (sequence, at), row in zip(rows, hidden, strict=True):
            yield sequence, at, row


def choose_mode(
    decoder: Any,
    probe: Probe,
    modes: Sequence[Mode],
    use: Callable[[Mode], None],
    leave_out: Callable[[str], None],
    architecture: str,
) -> Mode:
    """The first mode that is right; `use` sets the decoder to one. Layers that cannot have adapters
    are given to `leave_out`, and so are those that text does not run through.

    Raises ValueError with one sentence that says how far off the best one is.
    """
    tolerance = probe.tolerance(decoder.dtype)
    failures: list[str] = []
    for mode in modes:
        try:
            worst, idle = _difference(decoder, probe, mode, use, leave_out)
        except Exception as error:
            # a model's own code may fail in any way where it meets what it was not written for
            failures.append(f"{type(error).__name__} when {mode.name} ({first_line(error)})")
            continue
        if worst <= tolerance:
            for name in idle:
                leave_out(name)
            if failures:
                logger.info("%s runs %s: %s", architecture, mode.name, "; ".join(failures))
            if not mode.cached:
                logger.warning(
                    "%s computes whole sequences for every token it samples, which is slow: "
                    "its own cache cannot be used",
                    architecture,
                )
            return mode
        failures.append(f"{worst:.3g} nats off when {mode.name}")
    raise ValueError(
        f"{decoder.model_path}: {architecture} is not supported by the local engine, whose logits "
        f"have to equal the model's own within {tolerance:.1g} nats: {'; '.join(failures)}"
    )


def _difference(
    decoder: Any,
    probe: Probe,
    mode: Mode,
    use: Callable[[Mode], None],
    leave_out: Callable[[str], None],
) -> tuple[float, list[str]]:
    """In nats, and the layers that text does not run through."""
    while True:
        try:
            use(mode)
            worst = largest_difference(decoder, probe)
            return worst, [] if decoder.runs_all_layers else _idle_layers(decoder, probe)
        except NotAdaptableError as error:
            leave_out(error.name)


def _idle_layers(decoder: Any, probe: Probe) -> list[str]:
    """Layers that text does not run through (encoders, cross-attention, towers), or only without
    gradients (indexers): an adapter there could not be trained.

    Raises ValueError where the model's own code keeps gradients from all of them.
    """
    packing = _packing([probe.sequences[0]] * 3, shares=False)
    tokens, positions = (
        to_device(array, decoder.device) for array in (packing.tokens, packing.positions)
    )
    plan = SegmentAttention(packing.segments)
    reached: set[str] = set()

    def note(layer: Any, _inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            reached.add(layer.name)

    hooks = [product.register_forward_hook(note) for product in decoder.products()]
    try:
        with torch.enable_grad():
            hidden = decoder.hidden(tokens, positions, plan, LoraPass(training=True))
    finally:
        for hook in hooks:
            hook.remove()
    if not hidden.requires_grad:
        raise ValueError("no gradient comes to its layers")
    return [product.name for product in decoder.products() if product.name not in reached]


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
