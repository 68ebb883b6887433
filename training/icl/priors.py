"""How often each task of a mixture is drawn."""

import math

import torch
from torch import Tensor

from training.icl.settings import Setting


def log_prior(setting: Setting) -> Tensor:
    """Log-probabilities (M,) of the setting's tasks, float64, normalised.

    uniform: 1/M each. power_law: in proportion to m^-task_prior_exponent, m = 1..M.
    constant_freq: each of the first num_constant_tasks has the probability constant_freq whatever M
    is, the others share the rest evenly. No source defines that name; this is our definition, made
    to vary the diversity of tasks while some stay as frequent as they were.
    Raises ValueError for num_tasks=inf, which has no tasks to weigh.
    """
    count = setting.num_tasks
    if count == "inf":
        raise ValueError("setting.num_tasks=inf: without a number of tasks there is no prior")
    if setting.task_prior == "power_law":
        ranks_M = torch.arange(1, count + 1, dtype=torch.float64)
        return torch.log_softmax(-setting.task_prior_exponent * ranks_M.log(), dim=0)
    if setting.task_prior == "constant_freq":
        num_constant = setting.num_constant_tasks
        rest = (1 - setting.constant_freq * num_constant) / (count - num_constant)
        prior_M = torch.full((count,), rest, dtype=torch.float64)
        prior_M[:num_constant] = setting.constant_freq
        return torch.log_softmax(prior_M.log(), dim=0)
    assert setting.task_prior == "uniform"
    return uniform_log_prior(count)


def uniform_log_prior(count: int) -> Tensor:
    """(count,) equal log-probabilities, float64."""
    return torch.full((count,), -math.log(count), dtype=torch.float64)


def draw_ids(log_prior_M: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) rows, drawn with replacement."""
    if bool((log_prior_M == log_prior_M[0]).all()):
        # the same distribution; with a million tasks multinomial would cost more than a step
        return torch.randint(len(log_prior_M), (count,), generator=generator)
    return torch.multinomial(log_prior_M.exp(), count, replacement=True, generator=generator)
