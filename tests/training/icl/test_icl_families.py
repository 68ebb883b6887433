"""In-context learning: settings, priors, task sets and their files, sequences.

uv run pytest tests/training/icl/test_icl_families.py
"""

import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chz
import pytest
import torch
from places import ROOT
from torch.testing import assert_close

from training.icl.base import Batch, Family, TaskSet
from training.icl.families import make_family
from training.icl.priors import draw_ids, log_prior, uniform_log_prior
from training.icl.settings import (
    MAX_TASKS,
    BallsAndUrns,
    Classification,
    LinearRegression,
    Setting,
)
from training.icl.tasks import (
    Purpose,
    derived_seed,
    load_task_set,
    make_generator,
    new_task_set,
    task_file,
)
from utils.config.entrypoint import ConfigError

pytestmark = pytest.mark.usefixtures("one_torch_thread")
FAMILIES: tuple[type[Setting], ...] = (BallsAndUrns, LinearRegression, Classification)


def world(setting: Setting, cache_dir: Path) -> tuple[Family, TaskSet]:
    family = make_family(setting)
    tasks = load_task_set(setting, family, cache_dir)
    assert tasks is not None
    return family, tasks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------- settings


def test_settings_need_no_torch() -> None:
    code = "import sys, training.icl.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_num_tasks_is_a_number_or_inf_on_the_command_line() -> None:
    for text, value in (("inf", "inf"), ("64", 64)):
        blueprint = chz.Blueprint(BallsAndUrns)
        assert blueprint.make_from_argv([f"num_tasks={text}"]).num_tasks == value


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        (Setting, {}, "setting=Setting: one of BallsAndUrns, LinearRegression, Classification"),
        (BallsAndUrns, {"num_tasks": 0}, "setting.num_tasks=0: from 1 to 16777216, or inf"),
        (BallsAndUrns, {"num_tasks": MAX_TASKS + 1}, "or inf, is needed"),
        (BallsAndUrns, {"num_dims": 1}, "setting.num_dims=1: at least 2 kinds of balls"),
        (LinearRegression, {"num_dims": 0}, "setting.num_dims=0: at least 1"),
        (LinearRegression, {"context_length": 0}, "setting.context_length=0: at least 1"),
        (Classification, {"context_length": 1}, "an item and a query, 2 at least"),
        (BallsAndUrns, {"dirichlet_alpha": 0.0}, "setting.dirichlet_alpha=0.0: a number above 0"),
        (BallsAndUrns, {"dirichlet_alpha": math.nan}, "setting.dirichlet_alpha=nan"),
        (LinearRegression, {"noise_variance": 0.0}, "setting.noise_variance=0.0: a number above 0"),
        (Classification, {"within_variance": math.inf}, "setting.within_variance=inf"),
        (BallsAndUrns, {"task_prior": "power_law"}, "task_prior=power_law: needs a number of"),
        (
            BallsAndUrns,
            {"num_tasks": 4, "task_prior": "power_law", "task_prior_exponent": -1.0},
            "setting.task_prior_exponent=-1.0: a number from 0",
        ),
        (
            BallsAndUrns,
            {"num_tasks": 4, "task_prior_exponent": 2.0},
            "setting.task_prior_exponent=2.0: only setting.task_prior=power_law reads it",
        ),
        (
            BallsAndUrns,
            {"num_tasks": 4, "task_prior": "power_law", "constant_freq": 0.2},
            "setting.constant_freq=0.2: only setting.task_prior=constant_freq reads it",
        ),
        (
            BallsAndUrns,
            {"num_tasks": 4, "num_constant_tasks": 2},
            "setting.num_constant_tasks=2: only setting.task_prior=constant_freq reads it",
        ),
        *(
            (
                BallsAndUrns,
                {"num_tasks": 40, "task_prior": "constant_freq", "constant_freq": freq}
                | {"num_constant_tasks": number},
                "their product must lie between 0 and 1, both excluded",
            )
            for freq, number in ((0.0, 1), (1.0, 1), (0.5, 2), (-0.1, 1), (0.1, 0))
        ),
        (
            BallsAndUrns,
            {"num_tasks": 2, "task_prior": "constant_freq", "num_constant_tasks": 2},
            "setting.num_tasks=2: more than setting.num_constant_tasks=2",
        ),
    ],
)
def test_bad_settings_are_told(family: type[Setting], fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        family(**fields)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        BallsAndUrns(num_tasks=0, num_dims=0, context_length=-1, dirichlet_alpha=-1.0)
    assert len(caught.value.problems) == 4


def test_an_unknown_prior_or_family_is_refused() -> None:
    with pytest.raises(TypeError, match="zipf"):
        BallsAndUrns(task_prior="zipf", num_tasks=4)  # pyrefly: ignore[bad-argument-type]

    @chz.chz
    class Markov(Setting):
        pass

    with pytest.raises(ValueError, match="setting=Markov: one of BallsAndUrns"):
        make_family(Markov())


# --------------------------------------------------------------------------------------- priors


@pytest.mark.parametrize(
    ("exponent", "first", "last", "diversity"),
    [(1.0, 0.2108, 0.00329, 29.1), (1.5, 0.4231, 0.00083, 10.8), (0.0, 1 / 64, 1 / 64, 64)],
)
def test_power_law(exponent: float, first: float, last: float, diversity: float) -> None:
    setting = BallsAndUrns(num_tasks=64, task_prior="power_law", task_prior_exponent=exponent)
    prior = log_prior(setting).exp()
    assert prior[0].item() == pytest.approx(first, abs=5e-5)
    assert prior[-1].item() == pytest.approx(last, abs=5e-6)
    entropy = -(prior * prior.log()).sum().item()
    assert math.exp(entropy) == pytest.approx(diversity, abs=0.05)


@pytest.mark.parametrize("number", [5, 10, 1000])
def test_constant_tasks_keep_their_frequency_whatever_the_number(number: int) -> None:
    setting = BallsAndUrns(
        num_tasks=number, task_prior="constant_freq", constant_freq=0.2, num_constant_tasks=3
    )
    prior = log_prior(setting).exp()
    assert_close(prior[:3], torch.full((3,), 0.2, dtype=torch.float64))
    rest = torch.full((number - 3,), 0.4 / (number - 3), dtype=torch.float64)
    assert_close(prior[3:], rest)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"task_prior": "power_law", "task_prior_exponent": 300.0},
        {"task_prior": "constant_freq", "constant_freq": 0.3, "num_constant_tasks": 2},
    ],
)
def test_priors_are_normalised(fields: dict[str, Any]) -> None:
    prior = log_prior(BallsAndUrns(num_tasks=777, **fields))
    assert prior.dtype == torch.float64 and prior.shape == (777,)
    assert prior.logsumexp(0).item() == pytest.approx(0, abs=1e-14)


def test_no_prior_without_tasks() -> None:
    with pytest.raises(ValueError, match="num_tasks=inf"):
        log_prior(BallsAndUrns())


# ---------------------------------------------------------------------------------------- seeds


def test_seeds_of_two_purposes_are_never_equal() -> None:
    purposes: list[Purpose] = ["tasks", "ood", "data", "evaluation", "weights"]
    of = {purpose: {derived_seed(purpose, part) for part in range(200)} for purpose in purposes}
    # disjoint ranges, not luck; and 32 bits, all that torch's CPU generator reads
    ranges = sorted((min(seeds), max(seeds)) for seeds in of.values())
    for number, (low, high) in enumerate(ranges):
        assert number * 2**29 <= low <= high < (number + 1) * 2**29 <= 2**32
    assert all(len(seeds) == 200 for seeds in of.values())
    assert derived_seed("data", 1, 2) != derived_seed("data", 12)
    assert derived_seed("data", 1, "a") == derived_seed("data", 1, "a")
    streams = [torch.rand(3, generator=make_generator("data", part)) for part in (1, 1, 2)]
    assert torch.equal(streams[0], streams[1]) and not torch.equal(streams[0], streams[2])


@pytest.mark.parametrize("family_type", FAMILIES)
def test_new_tasks_are_not_those_of_the_mixture(family_type: type[Setting], tmp_path: Path) -> None:
    seen = []
    for task_seed in range(3):
        setting = family_type(num_tasks=16, task_seed=task_seed)
        family, tasks = world(setting, tmp_path)
        sets = [tasks, *(new_task_set(setting, family, 16, seed) for seed in range(3))]
        again = new_task_set(setting, family, 16, 2)
        name = next(iter(family.task_shapes))
        assert torch.equal(again.values[name], sets[-1].values[name])
        assert torch.equal(again.log_prior, uniform_log_prior(16))
        seen += [row for one in sets for row in one.values[name].flatten(1).tolist()]
    assert len({tuple(row) for row in seen}) == len(seen) == 3 * 4 * 16


# ------------------------------------------------------------------------------------ task files

# What the tasks of a setting depend on, and what they do not: every field is in one of them
SHAPING: dict[type[Setting], dict[str, Any]] = {
    BallsAndUrns: {"num_tasks": 7, "num_dims": 5, "task_seed": 1, "dirichlet_alpha": 2.0},
    LinearRegression: {"num_tasks": 7, "num_dims": 5, "task_seed": 1},
    Classification: {"num_tasks": 7, "num_dims": 5, "task_seed": 1},
}
PRIORS: dict[str, Any] = {
    "context_length": 9,
    "task_prior": "power_law",
    "task_prior_exponent": {"task_prior": "power_law", "task_prior_exponent": 2.0},
    "constant_freq": {"task_prior": "constant_freq", "constant_freq": 0.2},
    "num_constant_tasks": {"task_prior": "constant_freq", "num_constant_tasks": 2},
}
OTHERS: dict[type[Setting], dict[str, Any]] = {
    BallsAndUrns: PRIORS,
    LinearRegression: PRIORS | {"noise_variance": 1.0},
    Classification: PRIORS | {"within_variance": 1.0},
}


@pytest.mark.parametrize("family_type", FAMILIES)
def test_every_field_is_known_to_shape_tasks_or_not(family_type: type[Setting]) -> None:
    names = set(chz.chz_fields(family_type))
    assert names == set(SHAPING[family_type]) | set(OTHERS[family_type])
    assert not set(SHAPING[family_type]) & set(OTHERS[family_type])


@pytest.mark.parametrize(
    ("family_type", "name", "shaping"),
    [
        (family, name, shaping)
        for shaping, table in ((True, SHAPING), (False, OTHERS))
        for family, fields in table.items()
        for name in fields
    ],
)
def test_files_are_keyed_by_what_shapes_tasks(
    family_type: type[Setting], name: str, shaping: bool, tmp_path: Path
) -> None:
    value = (SHAPING if shaping else OTHERS)[family_type][name]
    fields: dict[str, Any] = value if isinstance(value, dict) else {name: value}
    base, other = family_type(num_tasks=6), chz.replace(family_type(num_tasks=6), **fields)
    _, tasks = world(base, tmp_path)
    _, changed = world(other, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 + shaping
    # what the second setting would have made by itself
    _, apart = world(other, tmp_path / "apart")
    for tensor in tasks.values:
        assert torch.equal(changed.values[tensor], apart.values[tensor])
        if tensor != "labels":
            assert torch.equal(tasks.values[tensor], apart.values[tensor]) != shaping


def test_families_do_not_share_files(tmp_path: Path) -> None:
    settings = [family(num_tasks=6) for family in FAMILIES]
    assert len({task_file(one, make_family(one), tmp_path) for one in settings}) == 3


@pytest.mark.parametrize("family_type", FAMILIES)
def test_tasks_are_read_again(
    family_type: type[Setting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = family_type(num_tasks=6, task_prior="power_law")
    family, tasks = world(setting, tmp_path)
    monkeypatch.setattr(type(family), "sample_tasks", None)
    again = load_task_set(setting, family, tmp_path)
    assert again is not None
    assert torch.equal(again.log_prior, log_prior(setting))
    assert again.values.keys() == tasks.values.keys() == family.task_shapes.keys()
    for name, tensor in tasks.values.items():
        assert torch.equal(again.values[name], tensor)
        assert again.values[name].dtype == tensor.dtype
        assert tensor.shape == (6, *family.task_shapes[name])


@pytest.mark.parametrize("family_type", FAMILIES)
def test_infinitely_many_tasks_have_no_file(family_type: type[Setting], tmp_path: Path) -> None:
    setting = family_type(num_tasks="inf")
    assert load_task_set(setting, make_family(setting), tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_file_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    small, large = BallsAndUrns(num_tasks=6, num_dims=3), BallsAndUrns(num_tasks=6, num_dims=4)
    family, _ = world(small, tmp_path)
    target = task_file(large, make_family(large), tmp_path)
    shutil.copy(task_file(small, family, tmp_path), target)
    with pytest.raises(ValueError) as caught:
        world(large, tmp_path)
    message = str(caught.value)
    assert str(target) in message and "delete it" in message
    assert "num_dims=3" in message and "num_dims=4" in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "not a readable task file"),
        ("empty", "not a readable task file"),
        ("list", "not a task file"),
        ("rows", "{'urns': (5, 8)}, {'urns': (6, 8)} is needed"),
        ("value", "its tasks are not those written to it"),
    ],
)
def test_a_damaged_file_is_refused(damage: str, message: str, tmp_path: Path) -> None:
    setting = BallsAndUrns(num_tasks=6)
    family, _ = world(setting, tmp_path)
    path = task_file(setting, family, tmp_path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "list":
        torch.save([1, 2], path)
    else:
        held = torch.load(path)
        if damage == "rows":
            held["values"]["urns"] = held["values"]["urns"][:5]
        else:
            held["values"]["urns"][2, 3] += 1e-12
        torch.save(held, path)
    with pytest.raises(ValueError) as caught:
        world(setting, tmp_path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value) and "delete it" in str(caught.value)


def test_many_may_ask_for_tasks_at_once(tmp_path: Path) -> None:
    setting = Classification(num_tasks=500)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: world(setting, tmp_path)[1], range(8)))
    assert all(torch.equal(one.values["centers"], made[0].values["centers"]) for one in made)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


# ------------------------------------------------------------------------------------ sequences


def draw(family: Family, tasks: TaskSet | None, count: int, seed: int = 0, **options: Any) -> Batch:
    return family.sample(tasks, count, generator(seed), **options)


@pytest.mark.parametrize("num_tasks", [6, "inf"])
@pytest.mark.parametrize("family_type", FAMILIES)
def test_shapes_and_types(family_type: type[Setting], num_tasks: Any, tmp_path: Path) -> None:
    setting = family_type(num_tasks=num_tasks, num_dims=5, context_length=7)
    family = make_family(setting)
    tasks = load_task_set(setting, family, tmp_path)
    batch = draw(family, tasks, 4)
    outputs = dict(zip(FAMILIES, (5, 1, 2), strict=True))[family_type]
    assert family.input_length == setting.input_length
    if family.input_kind == "tokens":
        assert batch.inputs.shape == (4, family.input_length)
        assert batch.inputs.dtype == torch.int64
        assert int(batch.inputs.max()) < family.input_size
    else:
        assert batch.inputs.shape == (4, family.input_length, family.input_size)
        assert batch.inputs.dtype == torch.float32
    assert batch.targets.shape == (4, family.num_positions)
    assert batch.truth.shape == (4, family.num_positions, outputs)
    assert batch.truth.dtype == torch.float64
    assert batch.task_ids.shape == (4,) and batch.task_ids.dtype == torch.int64
    assert (batch.task_ids == -1).all() == (tasks is None)
    output = torch.randn(4, family.input_length, family.output_size, generator=generator())
    predictions = family.predictions(output)
    assert predictions.shape == batch.truth.shape
    assert family.loss(predictions, batch).shape == (4, family.num_positions)
    assert family.training_loss(output, batch).shape == ()


@pytest.mark.parametrize("num_tasks", [6, "inf"])
@pytest.mark.parametrize("family_type", FAMILIES)
def test_sequences_follow_from_the_generator(
    family_type: type[Setting], num_tasks: Any, tmp_path: Path
) -> None:
    setting = family_type(num_tasks=num_tasks)
    family = make_family(setting)
    tasks = load_task_set(setting, family, tmp_path)
    torch.manual_seed(1)
    one = draw(family, tasks, 8, seed=5)
    torch.manual_seed(2)
    same, other = draw(family, tasks, 8, seed=5), draw(family, tasks, 8, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.inputs, other.inputs)


def test_urns_with_other_alphas_do_not_use_the_global_generator() -> None:
    family = make_family(BallsAndUrns(dirichlet_alpha=0.5))
    torch.manual_seed(1)
    one = family.sample_tasks(8, generator(3))["urns"]
    torch.manual_seed(2)
    assert torch.equal(one, family.sample_tasks(8, generator(3))["urns"])
    assert not torch.equal(one, family.sample_tasks(8, generator(4))["urns"])


@pytest.mark.parametrize("alpha", [1.0, 0.3, 4.0, 0.001])
def test_urns_are_dirichlet(alpha: float) -> None:
    """Mean 1/K and variance (K-1) / (K^2 (K alpha + 1)) of each kind."""
    family = make_family(BallsAndUrns(num_dims=4, dirichlet_alpha=alpha))
    urns = family.sample_tasks(40_000, generator())["urns"]
    assert urns.dtype == torch.float64 and float(urns.min()) > 0
    ones = torch.ones(40_000, dtype=torch.float64)
    assert_close(urns.sum(-1), ones, rtol=0, atol=1e-14)
    assert_close(urns.mean(0), torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=0.012)
    variance = torch.full((4,), 3 / (16 * (4 * alpha + 1)), dtype=torch.float64)
    assert_close(urns.var(0), variance, rtol=0.03, atol=0)


def test_balls_and_urns_are_read_after_a_first_token(tmp_path: Path) -> None:
    family, tasks = world(BallsAndUrns(num_tasks=3, num_dims=4, context_length=6), tmp_path)
    batch = draw(family, tasks, 5)
    assert family.input_size == family.output_size == 5
    assert (batch.inputs[:, 0] == 4).all()
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert int(batch.targets.max()) < 4
    for row, task in enumerate(batch.task_ids):
        assert torch.equal(batch.truth[row], tasks.values["urns"][task].expand(6, 4))


def test_balls_are_drawn_from_their_urn(tmp_path: Path) -> None:
    family, tasks = world(BallsAndUrns(num_tasks=3, num_dims=4, context_length=500), tmp_path)
    ids = torch.arange(3).repeat(100)
    batch = draw(family, tasks, 300, task_ids=ids)
    assert torch.equal(batch.task_ids, ids)
    for task in range(3):
        drawn = batch.targets[ids == task]
        for part in (drawn, drawn[:, :250], drawn[:, 250:]):
            share = torch.bincount(part.flatten(), minlength=4) / part.numel()
            expected = tasks.values["urns"][task].float()
            assert_close(share, expected, rtol=0, atol=0.015)


def test_without_tasks_every_sequence_has_its_own() -> None:
    urns = draw(make_family(BallsAndUrns()), None, 200).truth[:, 0]
    assert len({tuple(row) for row in urns.tolist()}) == 200
    family = make_family(LinearRegression(num_dims=2, context_length=3, noise_variance=1e-12))
    batch = draw(family, None, 200)
    x_BCD = batch.inputs[:, ::2, 1:].double()
    weights = torch.linalg.lstsq(x_BCD, batch.truth).solution[..., 0]
    assert_close(weights.var(0), torch.ones(2, dtype=torch.float64), rtol=0, atol=0.35)
    assert len({tuple(row) for row in weights.round(decimals=4).tolist()}) == 200


def test_linear_regression_is_interleaved(tmp_path: Path) -> None:
    setting = LinearRegression(num_tasks=3, num_dims=2, context_length=4)
    family, tasks = world(setting, tmp_path)
    batch = draw(family, tasks, 5)
    assert batch.inputs.shape == (5, 7, 3)
    for row in range(5):
        weights = tasks.values["weights"][batch.task_ids[row]]
        for k in range(4):
            x = batch.inputs[row, 2 * k]
            assert x[0] == 0
            truth = sum(float(x[1 + d]) * float(weights[d]) for d in range(2))
            assert float(batch.truth[row, k, 0]) == pytest.approx(truth, rel=1e-12)
            if k < 3:
                assert batch.inputs[row, 2 * k + 1].tolist() == [batch.targets[row, k], 0, 0]


def test_linear_regression_has_the_documented_moments(tmp_path: Path) -> None:
    setting = LinearRegression(num_tasks=3, num_dims=2, noise_variance=0.49, context_length=50)
    family, tasks = world(setting, tmp_path)
    batch = draw(family, tasks, 1000)
    noise = (batch.targets - batch.truth[..., 0]).flatten()
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.var()) == pytest.approx(0.49, abs=0.01)
    x = batch.inputs[:, ::2, 1:].flatten(0, 1)
    assert_close(x.T.cov(), torch.eye(2), rtol=0, atol=0.02)
    many = family.sample_tasks(50_000, generator(1))["weights"]
    assert_close(many.T.cov(), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.03)
    assert float(many.mean()) == pytest.approx(0, abs=0.02)


PRIOR: dict[str, Any] = {"task_prior": "power_law", "task_prior_exponent": 1.0}


@pytest.mark.parametrize("family_type", FAMILIES)
@pytest.mark.parametrize(
    ("prior", "odds"), [({}, [1, 1, 1, 1, 1]), (PRIOR, [60, 30, 20, 15, 12])], ids=["even", "power"]
)
def test_tasks_are_drawn_by_the_prior(
    family_type: type[Setting], prior: dict[str, Any], odds: list[int], tmp_path: Path
) -> None:
    family, tasks = world(family_type(num_tasks=5, context_length=4, **prior), tmp_path)
    expected = torch.tensor(odds) / sum(odds)
    batch = draw(family, tasks, 40_000)
    torch.manual_seed(1)
    drawn = draw_ids(tasks.log_prior, 40_000, generator(7))
    torch.manual_seed(2)
    assert torch.equal(drawn, draw_ids(tasks.log_prior, 40_000, generator(7)))
    for ids in (batch.task_ids, drawn):
        share = torch.bincount(ids, minlength=5) / 40_000
        assert_close(share, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("family_type", FAMILIES)
def test_chosen_tasks_are_checked(family_type: type[Setting], tmp_path: Path) -> None:
    family, tasks = world(family_type(num_tasks=5), tmp_path)
    with pytest.raises(ValueError, match=r"one for each of the 3 sequences"):
        draw(family, tasks, 3, task_ids=torch.zeros(2, dtype=torch.int64))
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=r"of 0\.\.4"):
            draw(family, tasks, 1, task_ids=torch.tensor([wrong]))
    with pytest.raises(ValueError, match="num_tasks=inf"):
        draw(family, None, 1, task_ids=torch.tensor([0]))


def tell_pairs(batch: Batch, centers: torch.Tensor, variance: float) -> torch.Tensor:
    """(B, C) nearest centres: right where items all but lie on their centres."""
    items = batch.inputs[..., :-1].double() * (1 + variance) ** 0.5
    return torch.cdist(items, centers.expand(len(items), -1, -1)).argmin(-1)


def test_a_query_copies_one_of_the_items(tmp_path: Path) -> None:
    variance = 1e-6
    setting = Classification(
        num_tasks=6, num_dims=4, context_length=5, within_variance=variance, **PRIOR
    )
    family, tasks = world(setting, tmp_path)
    batch = draw(family, tasks, 30_000)
    pairs = tell_pairs(batch, tasks.values["centers"], variance)
    query, items = pairs[:, -1], pairs[:, :-1]
    assert torch.equal(query, batch.task_ids)
    labels = tasks.values["labels"]
    assert torch.equal(batch.inputs[:, :-1, -1], labels[items].float())
    assert (batch.inputs[:, -1, -1] == -1).all()
    assert torch.equal(batch.targets[:, 0], labels[query])
    assert torch.equal(batch.truth[:, 0].argmax(-1), labels[query])
    assert (batch.truth.sum(-1) == 1).all()
    # with noise of its own, not the item itself
    copied = items == query[:, None]
    assert copied.any(1).all()
    assert not (batch.inputs[:, :-1, :-1] == batch.inputs[:, -1:, :-1]).all(-1).any()
    # items are independent draws by the prior
    prior = tasks.log_prior.exp().float()
    for position in range(4):
        share = items[:, position].bincount(minlength=6) / 30_000
        assert_close(share, prior, rtol=0, atol=0.012)
    both = (items[:, 0] * 6 + items[:, 1]).bincount(minlength=36) / 30_000
    assert_close(both, torch.outer(prior, prior).flatten(), rtol=0, atol=0.012)
    # every position is copied equally often
    alone = copied.sum(1) == 1
    share = copied[alone].float().mean(0)
    assert_close(share, torch.full((4,), 0.25), rtol=0, atol=0.015)


def test_a_chosen_pair_is_the_query_and_in_the_context(tmp_path: Path) -> None:
    variance = 1e-6
    setting = Classification(
        num_tasks=6, num_dims=4, context_length=5, within_variance=variance, **PRIOR
    )
    family, tasks = world(setting, tmp_path)
    ids = torch.full((20_000,), 5)
    batch = draw(family, tasks, 20_000, task_ids=ids)
    assert torch.equal(batch.task_ids, ids)
    pairs = tell_pairs(batch, tasks.values["centers"], variance)
    assert (pairs[:, -1] == 5).all()
    assert (pairs[:, :-1] == 5).any(1).all()
    # at any position; the other three by the prior
    prior = tasks.log_prior.exp().float()
    for position in range(4):
        share = pairs[:, position].bincount(minlength=6) / 20_000
        expected = 0.75 * prior
        expected[5] += 0.25
        assert_close(share, expected, rtol=0, atol=0.015)


@pytest.mark.parametrize("chosen", [False, True])
def test_in_weights_evaluation_leaves_the_query_out(chosen: bool, tmp_path: Path) -> None:
    variance = 1e-6
    setting = Classification(
        num_tasks=4, num_dims=4, context_length=5, within_variance=variance, **PRIOR
    )
    family, tasks = world(setting, tmp_path)
    prior = tasks.log_prior.exp().float()
    options: dict[str, Any] = {"task_ids": torch.full((30_000,), 1)} if chosen else {}
    batch = draw(family, tasks, 30_000, query_in_context=False, **options)
    pairs = tell_pairs(batch, tasks.values["centers"], variance)
    query, items = pairs[:, -1], pairs[:, :-1]
    assert torch.equal(query, batch.task_ids)
    assert not (items == query[:, None]).any()
    assert torch.equal(batch.targets[:, 0], tasks.values["labels"][query])
    if not chosen:
        assert_close(query.bincount() / 30_000, prior, rtol=0, atol=0.012)
    # the other pairs keep their odds
    share = items[query == 1].flatten().bincount(minlength=4).float()
    expected = prior * torch.tensor([1.0, 0, 1, 1])
    assert_close(share / share.sum(), expected / expected.sum(), rtol=0, atol=0.012)


def test_new_pairs_are_all_different() -> None:
    variance = 1e-10
    setting = Classification(
        num_tasks="inf", num_dims=8, context_length=6, within_variance=variance
    )
    family = make_family(setting)
    for query_in_context in (True, False):
        batch = draw(family, None, 500, query_in_context=query_in_context)
        items = batch.inputs[..., :-1].double()
        near = torch.cdist(items, items) < 1e-3
        assert (near[:, :-1, :-1].sum((1, 2)) == 5).all()
        same = near[:, -1, :-1]
        assert (same.sum(1) == query_in_context).all()
        if query_in_context:
            labels = batch.inputs[:, :-1, -1][same]
            assert torch.equal(labels, batch.targets[:, 0].float())
            assert_close(same.float().mean(0), torch.full((5,), 0.2), rtol=0, atol=0.07)


def test_items_spread_about_their_centres(tmp_path: Path) -> None:
    """x sqrt(1+v) - mu has variance v/D and, over centres too, x has 1/D."""
    setting = Classification(num_tasks=50, num_dims=3, context_length=51, within_variance=0.5)
    family, tasks = world(setting, tmp_path)
    batch = draw(family, tasks, 4000, task_ids=torch.arange(50).repeat(80))
    query = batch.inputs[:, -1, :-1].double()
    noise = query * 1.5**0.5 - tasks.values["centers"][batch.task_ids]
    eye = torch.eye(3, dtype=torch.float64)
    assert_close(noise.T.cov(), 0.5 / 3 * eye, rtol=0, atol=0.01)
    fresh = draw(make_family(chz.replace(setting, num_tasks="inf")), None, 500)
    assert_close(
        fresh.inputs[..., :-1].flatten(0, 1).T.cov(), (eye / 3).float(), rtol=0, atol=0.012
    )
    assert float(fresh.targets.double().mean()) == pytest.approx(0.5, abs=0.08)


def test_only_classification_has_in_weights_evaluation(tmp_path: Path) -> None:
    for family_type in (BallsAndUrns, LinearRegression):
        with pytest.raises(ValueError, match="query_in_context=False"):
            draw(make_family(family_type()), None, 2, query_in_context=False)
    family, tasks = world(Classification(num_tasks=1), tmp_path)
    with pytest.raises(ValueError, match=r"needs 2 pairs or more, not 1: raise setting.num_tasks"):
        draw(family, tasks, 2, query_in_context=False)


# ----------------------------------------------------------------------- what training minimises


def test_training_losses(tmp_path: Path) -> None:
    """Against loops: all K + 1 tokens; noisy y, not divided by D; the query's label."""

    def output_of(family: Family) -> torch.Tensor:
        shape = (3, family.input_length, family.output_size)
        return torch.randn(shape, generator=generator(1))

    family, tasks = world(BallsAndUrns(num_tasks=3, num_dims=4, context_length=5), tmp_path)
    batch, output = draw(family, tasks, 3), output_of(family)
    losses = [
        math.log(sum(math.exp(v) for v in output[b, t].tolist()))
        - output[b, t, batch.targets[b, t]].item()
        for b in range(3)
        for t in range(5)
    ]
    assert family.training_loss(output, batch).item() == pytest.approx(sum(losses) / 15, rel=1e-5)

    family, tasks = world(LinearRegression(num_tasks=3, num_dims=4, context_length=5), tmp_path)
    batch, output = draw(family, tasks, 3), output_of(family)
    losses = [
        (output[b, 2 * k, 0].item() - batch.targets[b, k].item()) ** 2
        for b in range(3)
        for k in range(5)
    ]
    assert family.training_loss(output, batch).item() == pytest.approx(sum(losses) / 15, rel=1e-5)

    family, tasks = world(Classification(num_tasks=3, num_dims=4, context_length=5), tmp_path)
    batch, output = draw(family, tasks, 3), output_of(family)
    losses = [
        math.log(1 + math.exp(other - own))
        for b in range(3)
        for own, other in [
            (
                output[b, -1, batch.targets[b, 0]].item(),
                output[b, -1, 1 - batch.targets[b, 0]].item(),
            )
        ]
    ]
    assert family.training_loss(output, batch).item() == pytest.approx(sum(losses) / 3, rel=1e-5)
