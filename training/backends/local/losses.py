"""The loss functions of the API, each as a function of the target tokens' logprobs.

p: logprob of the target under the current adapter, q: `logprobs` (the sampler's), A: `advantages`.
A loss returns one value per token, summed by the engine. Tensors cover only the positions that can
matter (non-zero weight, advantage or sampler logprob), of one datum at a time, so that a prompt's
placeholder values (q = 0, target 0) cannot make inf * 0 = NaN. docs/losses.md has the formulas.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from training import checks
from training.api import Datum

Inputs = dict[str, torch.Tensor]
Config = Mapping[str, float]


class Loss(NamedTuple):
    """`required` / `optional` name loss_fn_inputs; `config` maps keys to defaults, None: required.

    `whole_sequence`: the gradient at one token depends on the datum's other logprobs.
    """

    per_token: Callable[[torch.Tensor, Inputs, Config], torch.Tensor]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    config: dict[str, float | None]
    whole_sequence: bool = False


def _cross_entropy(p: torch.Tensor, inputs: Inputs, _config: Config) -> torch.Tensor:
    return -(p * inputs["weights"])


def _importance_sampling(p: torch.Tensor, inputs: Inputs, _config: Config) -> torch.Tensor:
    advantages = inputs["advantages"]
    # 1 where the advantage is 0: an overflow there would make inf * 0
    log_ratio = torch.where(advantages != 0, p - inputs["logprobs"], 0.0)
    return -(torch.exp(log_ratio) * advantages)


def _clipped(log_ratio: torch.Tensor, advantages: torch.Tensor, config: Config) -> torch.Tensor:
    """-min(r A, clip(r) A) for r = exp(log_ratio).

    Where the clipped term is the smaller one it is a constant, and r may have overflowed; autograd
    through min would make 0 * inf = NaN of its gradient there.
    """
    low, high = config["clip_low_threshold"], config["clip_high_threshold"]
    ratio = torch.exp(log_ratio.detach())
    constant = torch.where(advantages > 0, ratio > high, ratio < low)
    bound = torch.where(advantages > 0, high, low)
    moving = torch.exp(torch.where(constant | (advantages == 0), 0.0, log_ratio))
    return -(torch.where(constant, bound, moving) * advantages)


def _ppo(p: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    return _clipped(p - inputs["logprobs"], inputs["advantages"], config)


def _cispo(p: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    ratio = torch.exp(p.detach() - inputs["logprobs"])
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -(clipped * p * inputs["advantages"])


def _dro(p: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """-(p A - beta/2 (p - q)^2).

    Positions with A = q = 0 are left out, as in every loss here. Taken literally the formula would
    add beta/2 p^2 there, which pulls the prompt's tokens towards probability 1: they are
    placeholders, of which no sampler gave a logprob. A token sampled with certainty (q = 0) under
    advantage 0 is left out with them.
    """
    quadratic = 0.5 * config["beta"] * (p - inputs["logprobs"]) ** 2
    return -(p * inputs["advantages"] - quadratic)


def _gspo(p: torch.Tensor, inputs: Inputs, config: Config) -> torch.Tensor:
    """Sequence-level ratio with token-level gradients (GSPO-token, arXiv 2507.18071 eq. 13-14)."""
    mask = inputs["sequence_ratio_mask"] != 0
    if not mask.any():
        return p * 0.0
    log_s = (p.detach() - inputs["logprobs"])[mask].mean()
    return _clipped(log_s + (p - p.detach()), inputs["advantages"], config)


FLOAT32_MAX = float(np.finfo(np.float32).max)
_RL = ("target_tokens", "logprobs", "advantages")
_PPO_CLIPS: dict[str, float | None] = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}

LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(_cross_entropy, ("target_tokens",), ("weights",), {}),
    "importance_sampling": Loss(_importance_sampling, _RL, (), {}),
    "ppo": Loss(_ppo, _RL, (), _PPO_CLIPS),
    "cispo": Loss(_cispo, _RL, (), _PPO_CLIPS),
    "dro": Loss(_dro, _RL, (), {"beta": None}),
    "gspo": Loss(
        _gspo,
        (*_RL, "sequence_ratio_mask"),
        (),
        {"clip_low_threshold": None, "clip_high_threshold": None},
        whole_sequence=True,
    ),
}


def resolve_config(loss_fn: str, config: Mapping[str, float | str] | None) -> dict[str, float]:
    """The loss's settings with defaults filled in. Raises ValueError that lists what is allowed."""
    if loss_fn not in LOSSES:
        raise ValueError(f"loss_fn={loss_fn!r}: allowed are {', '.join(LOSSES)}")
    allowed = LOSSES[loss_fn].config
    given = dict(config or {})
    if unknown := sorted(given.keys() - allowed.keys()):
        keys = ", ".join(allowed) if allowed else "none"
        raise ValueError(f"loss_fn_config has {unknown}; {loss_fn} allows the keys: {keys}")
    if missing := sorted(
        key for key, default in allowed.items() if default is None and key not in given
    ):
        raise ValueError(
            f"loss_fn_config lacks {missing}: {loss_fn} has no published default for them; "
            f"pass loss_fn_config={{{', '.join(f'{key!r}: ...' for key in missing)}}}"
        )
    resolved = {key: default for key, default in allowed.items() if default is not None}
    for key, value in given.items():
        try:
            resolved[key] = float(checks.real()(value))
        except ValueError as error:
            raise ValueError(f"loss_fn_config[{key!r}]={value!r}: {error}") from error
    low, high = resolved.get("clip_low_threshold"), resolved.get("clip_high_threshold")
    if low is not None and high is not None and not 0 <= low <= high:
        raise ValueError(
            f"clip thresholds are bounds of the ratio, 0 <= low <= high; got low={low}, high={high}"
        )
    return resolved


@dataclass
class LossInputs:
    """One datum, ready for the engine: `positions` [n] can matter; the rest is never computed.

    `targets` is [n] or [n, K]; every tensor in `inputs` has its shape.
    """

    positions: np.ndarray
    targets: torch.Tensor
    inputs: Inputs
    target_shape: tuple[int, ...]


def prepare(index: int, datum: Datum, loss_fn: str, vocab_size: int) -> LossInputs:
    """Checks one datum and keeps the positions that can matter.

    Raises ValueError naming the datum, the key, what it got and what is needed.
    """
    loss = LOSSES[loss_fn]
    length = datum.model_input.length
    given = datum.loss_fn_inputs
    where = f"data[{index}]"
    if length == 0:
        raise ValueError(f"{where}.model_input is empty; it needs at least one token")
    allowed = loss.required + loss.optional
    if missing := [key for key in loss.required if key not in given]:
        raise ValueError(f"{where}.loss_fn_inputs lacks {missing}; {loss_fn} allows {allowed}")
    if unknown := sorted(given.keys() - set(allowed)):
        raise ValueError(f"{where}.loss_fn_inputs has {unknown}; {loss_fn} allows {allowed}")
    arrays = {key: tensor.to_numpy() for key, tensor in given.items()}
    targets = arrays.pop("target_tokens")
    if targets.dtype != np.int64:
        raise ValueError(f"{where}.target_tokens has dtype {targets.dtype}; int64 is needed")
    two_dimensional = loss_fn == "cross_entropy" and targets.ndim == 2
    if (targets.ndim != 1 and not two_dimensional) or len(targets) != length:
        shapes = f"({length},)" + (f" or ({length}, K)" if loss_fn == "cross_entropy" else "")
        raise ValueError(f"{where}.target_tokens has shape {targets.shape}; {shapes} is needed")
    if targets.size and (targets.min() < 0 or targets.max() >= vocab_size):
        raise ValueError(
            f"{where}.target_tokens has values in [{targets.min()}, {targets.max()}]; "
            f"the model's vocabulary is 0..{vocab_size - 1}"
        )
    if loss_fn == "cross_entropy" and "weights" not in arrays:
        arrays["weights"] = np.ones(targets.shape, dtype=np.float32)
    for key, array in arrays.items():
        if array.shape != targets.shape:
            raise ValueError(
                f"{where}.{key} has shape {array.shape}; target_tokens has {targets.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{where}.{key} has NaN or infinite values; it needs finite ones")
        if array.dtype == np.float64 and np.abs(array).max(initial=0) > FLOAT32_MAX:
            raise ValueError(
                f"{where}.{key} has {array.flat[np.abs(array).argmax()]:.4g}; float32 holds values "
                f"up to {FLOAT32_MAX:.4g}"
            )
    matters = np.zeros(targets.shape, dtype=bool)
    for key in ("weights", "advantages", "logprobs", "sequence_ratio_mask"):
        if key in arrays:
            matters |= arrays[key] != 0
    positions = np.flatnonzero(matters if matters.ndim == 1 else matters.any(axis=1))
    return LossInputs(
        positions=positions,
        targets=torch.from_numpy(targets[positions]),
        inputs={key: torch.from_numpy(array[positions]).float() for key, array in arrays.items()},
        target_shape=targets.shape,
    )


def loss_and_gradient(
    loss_fn: str, logprobs: torch.Tensor, inputs: Inputs, config: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token losses and d(sum of losses)/d(logprobs), both of the shape of `logprobs`."""
    with torch.enable_grad():
        p = logprobs.detach().requires_grad_()
        losses = LOSSES[loss_fn].per_token(p, inputs, config)
        (gradient,) = torch.autograd.grad(losses.sum(), p)
    return losses.detach(), gradient


def overflow_message(
    datum: int,
    prepared: LossInputs,
    logprobs: torch.Tensor,
    losses: torch.Tensor,
    gradient: torch.Tensor,
) -> str:
    """Names the position of a datum whose loss or gradient is the furthest from what float32 holds.

    The tensors are those of `loss_and_gradient`, and its inputs'.
    """
    size = torch.maximum(losses.abs(), gradient.abs()).nan_to_num(torch.inf, posinf=torch.inf)
    at = int(size.argmax())
    position = prepared.positions[at // (size.shape[1] if size.ndim == 2 else 1)]
    values = {"logprob": logprobs, **prepared.inputs, "loss": losses, "gradient": gradient}
    listed = ", ".join(f"{key} {value.flatten()[at].item():.4g}" for key, value in values.items())
    if not logprobs.flatten()[at].isfinite():
        remedy = "The adapter has grown too far: a smaller learning rate is needed"
    elif "logprobs" in prepared.inputs:
        remedy = "`logprobs` have to be those that the sampler gave to the same target_tokens"
    else:
        remedy = "Smaller `weights` are needed"
    return (
        f"data[{datum}] at position {position}: {listed}; float32 cannot hold what follows from "
        f"that. {remedy}"
    )
