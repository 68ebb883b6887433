"""What a mixture of tasks is made of: the families, how many tasks, how often each is drawn."""

import math
from typing import Literal

import chz

from utils.config.entrypoint import raise_problems

# torch.multinomial draws from no more categories than this
MAX_TASKS = 2**24


@chz.chz(typecheck=True)
class Setting:
    """Fields that all families share; choose one with setting=BallsAndUrns and so on."""

    num_tasks: int | Literal["inf"] = chz.field(
        default="inf", doc="tasks in the mixture; inf: a new one for every sequence"
    )
    num_dims: int = chz.field(default=8, doc="kinds of balls, or dimensions of the inputs")
    context_length: int = chz.field(default=64, doc="draws, pairs or items in a sequence")
    task_prior: Literal["uniform", "power_law", "constant_freq"] = chz.field(
        default="uniform", doc="how often each of the tasks is drawn"
    )
    task_prior_exponent: float = chz.field(
        default=1.0, doc="of power_law: task m of 1..M is drawn in proportion to m^-exponent"
    )
    constant_freq: float = chz.field(
        default=0.1, doc="of constant_freq: how often each constant task is drawn, whatever M is"
    )
    num_constant_tasks: int = chz.field(
        default=1, doc="of constant_freq: the first so many tasks; the others share the rest evenly"
    )
    task_seed: int = chz.field(default=0, doc="of the tasks; new ones for evaluation take another")

    @property
    def input_length(self) -> int:
        """Positions that a model reads."""
        return self.context_length

    @chz.validate
    def _check(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> list[str]:
        """All that is wrong; a family adds its own, so that one error tells everything."""
        problems = []
        if type(self) is Setting:
            problems.append(
                "setting=Setting: one of BallsAndUrns, LinearRegression, Classification is needed"
            )
        if self.num_tasks != "inf" and not 1 <= self.num_tasks <= MAX_TASKS:
            problems.append(
                f"setting.num_tasks={self.num_tasks}: from 1 to {MAX_TASKS}, or inf, is needed"
            )
        for name in ("num_dims", "context_length"):
            if getattr(self, name) < 1:
                problems.append(f"setting.{name}={getattr(self, name)}: at least 1 is needed")
        return problems + self._prior_problems()

    def _prior_problems(self) -> list[str]:
        problems = []
        if self.num_tasks == "inf" and self.task_prior != "uniform":
            problems.append(
                f"setting.task_prior={self.task_prior}: needs a number of tasks, "
                "set setting.num_tasks"
            )
        for field, prior in (
            ("task_prior_exponent", "power_law"),
            ("constant_freq", "constant_freq"),
            ("num_constant_tasks", "constant_freq"),
        ):
            given = getattr(self, field)
            if self.task_prior != prior and given != _DEFAULTS[field]:
                problems.append(
                    f"setting.{field}={given}: only setting.task_prior={prior} reads it, "
                    f"and task_prior is {self.task_prior}; set that or leave {field} out"
                )
        if not 0 <= self.task_prior_exponent < math.inf:
            problems.append(
                f"setting.task_prior_exponent={self.task_prior_exponent}: a number from 0 is needed"
            )
        if self.task_prior == "constant_freq" and self.num_tasks != "inf":
            held = self.constant_freq * self.num_constant_tasks
            if self.num_constant_tasks < 1 or not 0 < held < 1:
                problems.append(
                    f"setting.constant_freq={self.constant_freq} x "
                    f"setting.num_constant_tasks={self.num_constant_tasks}: "
                    "their product must lie between 0 and 1, both excluded"
                )
            if self.num_tasks <= self.num_constant_tasks:
                problems.append(
                    f"setting.num_tasks={self.num_tasks}: more than "
                    f"setting.num_constant_tasks={self.num_constant_tasks} are needed"
                )
        return problems


# What a setting that does not read the field must hold: no option is given in vain.
_DEFAULTS = {"task_prior_exponent": 1.0, "constant_freq": 0.1, "num_constant_tasks": 1}


@chz.chz(typecheck=True)
class BallsAndUrns(Setting):
    """Urns of K=num_dims kinds of balls: C draws with replacement from one urn."""

    dirichlet_alpha: float = chz.field(default=1.0, doc="urns are drawn from Dirichlet(alpha, ...)")

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.num_dims == 1:
            problems.append(f"setting.num_dims={self.num_dims}: at least 2 kinds of balls")
        if not 0 < self.dirichlet_alpha < math.inf:
            problems.append(
                f"setting.dirichlet_alpha={self.dirichlet_alpha}: a number above 0 is needed"
            )
        return problems


@chz.chz(typecheck=True)
class LinearRegression(Setting):
    """y = w.x + noise: C pairs with one weight vector w of D=num_dims."""

    context_length: int = chz.field(default=16, doc="pairs in a sequence")
    noise_variance: float = chz.field(default=0.25, doc="of y")

    @property
    def input_length(self) -> int:
        """Of x_1, y_1, ..., x_C."""
        return 2 * self.context_length - 1

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not 0 < self.noise_variance < math.inf:
            problems.append(
                f"setting.noise_variance={self.noise_variance}: a number above 0 is needed"
            )
        return problems


@chz.chz(typecheck=True)
class Classification(Setting):
    """C-1 labelled items and a query, items drawn from M=num_tasks pairs of a centre and a label;
    each item is its centre with noise."""

    num_tasks: int | Literal["inf"] = chz.field(
        default=64, doc="pairs of a centre and a label; inf: C-1 new ones for every sequence"
    )
    within_variance: float = chz.field(
        default=0.5, doc="of an item about its centre, as a multiple of the centres' own 1/D"
    )

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.context_length == 1:
            problems.append(
                f"setting.context_length={self.context_length}: an item and a query, 2 at least"
            )
        if not 0 < self.within_variance < math.inf:
            problems.append(
                f"setting.within_variance={self.within_variance}: a number above 0 is needed"
            )
        return problems
