"""The ARC domain: its settings, and rewards on a tiny random model.

uv run pytest tests/training/domains/arc/test_arc_domain.py
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.connect import connect
from training.domains.arc.config import SEAL, SMALL, ArcConfig
from training.domains.arc.domain import ArcDomain
from training.domains.arc.files import CONFIGS_NAME, RESULTS_NAME, read_configs, read_results
from training.domains.arc.report import edit_summary, write_published_files
from training.domains.arc.self_edit import FAMILY_OF_FLAG, ORACLE, parse_self_edit
from training.rl.report import make_report
from utils.config.entrypoint import ConfigError
from utils.runs.files import append_jsonl


def self_edit(
    rate: float = 0.01, epochs: int = 2, *, indent: int | None = None, **flags: bool
) -> str:
    return json.dumps(
        {
            "data_generation": {flag: flags.get(flag, False) for flag in FAMILY_OF_FLAG},
            "training": {
                "strategy": "train_using_output_tokens",
                "learning_rate": rate,
                "num_train_epochs": epochs,
            },
        },
        indent=indent,
    )


def task(shift: int) -> dict[str, Any]:
    """Mirrors one row of two cells."""
    pairs = [{"input": [[c, shift]], "output": [[shift, c]]} for c in range(1, 4)]
    return {"train": pairs, "test": [{"input": [[5, shift]]}]}


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_set": "tiny"}, "task_set='tiny': allowed are auto, ids, small, seal, arc1, arc2"),
        ({"task_set": "ids", "train_ids": ["a"]}, "task_set=ids needs train_ids and test_ids"),
        ({"train_ids": ["a"]}, "train_ids and test_ids need task_set=ids"),
        ({"challenges_file": Path("a")}, "challenges_file and solutions_file belong together"),
        ({"test_solutions_file": Path("a")}, "test_challenges_file and test_solutions_file belong"),
        ({"cap": 0}, "cap=0: at least 1 is needed"),
        ({"inner_rank": -1}, "inner_rank=-1: at least 1 is needed"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ArcConfig(**settings)
    assert message in str(error.value)


def test_wrong_settings_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        ArcConfig(task_set="tiny", cap=0, max_tokens=0)
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("settings", "chosen_set", "preset"),
    [
        ({}, "small", SMALL),
        ({"model_name": "some/model"}, "seal", SEAL),
        ({"model_name": "some/model", "task_set": "small"}, "small", SMALL),
        ({"task_set": "arc2"}, "arc2", SMALL),
        (
            {"model_name": "m", "task_set": "ids", "train_ids": ["a"], "test_ids": ["b"]},
            "ids",
            SEAL,
        ),
    ],
)
def test_presets(settings: dict[str, Any], chosen_set: str, preset: Any) -> None:
    config = ArcConfig(**settings)
    assert config.chosen_set == chosen_set
    assert config.preset is preset
    assert config.inner().cap == preset.cap
    assert config.inner().adapt.lora["rank"] == preset.lora_rank
    assert config.inner().grid_format == preset.grid_format


def test_an_explicit_setting_wins_over_the_preset() -> None:
    config = ArcConfig(
        cap=3,
        inner_rank=5,
        grid_format="words",
        min_epochs=2,
        max_answer_tokens=0,
        max_inner_steps=9,
    )
    inner = config.inner()
    assert (inner.cap, inner.adapt.lora["rank"], inner.grid_format) == (3, 5, "words")
    assert (inner.bounds.min_epochs, inner.bounds.max_steps) == (2, 9)
    # 0 is given, and means all that the context leaves
    assert inner.max_answer_tokens == 0


def test_seals_own_numbers() -> None:
    """arXiv 2506.10943, appendix, and its code."""
    inner = ArcConfig(model_name="m", task_set="seal").inner()
    assert (inner.adapt.lora["rank"], inner.adapt.lora["lora_alpha"]) == (128, 16.0)
    assert (inner.adapt.batch_size, inner.adapt.warmup_steps, inner.cap) == (2, 11, 250)
    assert inner.bounds.max_steps == 375
    assert (SEAL.loop["group_size"], SEAL.loop["groups_per_batch"]) == (15, 11)
    assert (SEAL.loop["rest_em_epochs"], SEAL.loop["rest_em_batch_size"]) == (8, 5)


# ----------------------------------------------------------------------------------------- rewards


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="0123456789#\n")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    paths = {}
    for prefix, shifts in (("", (7, 8)), ("test_", (9,))):
        challenges = {f"task{shift}": task(shift) for shift in shifts}
        solutions = {f"task{shift}": [[[shift, 5]]] for shift in shifts}
        for name, data in (("challenges", challenges), ("solutions", solutions)):
            paths[f"{prefix}{name}_file"] = folder / f"{prefix}{name}.json"
            paths[f"{prefix}{name}_file"].write_text(json.dumps(data))
    return paths


class CountingService:
    """Passes everything on, and counts the adapters that are trained."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self.adapters = 0

    def create_lora_training_client(self, *args: Any, **kwargs: Any) -> Any:
        self.adapters += 1
        return self._service.create_lora_training_client(*args, **kwargs)

    def create_sampling_client(self, *args: Any, **kwargs: Any) -> Any:
        return self._service.create_sampling_client(*args, **kwargs)


@pytest.fixture
def make(
    model: str, files: dict[str, Path], service: Any
) -> Callable[..., tuple[ArcDomain, CountingService]]:
    def make(**settings: Any) -> tuple[ArcDomain, CountingService]:
        counting: Any = CountingService(service)
        options: dict[str, Any] = {
            "model_name": model,
            "task_set": "small",
            "inner_rank": 4,
            "inner_batch_size": 2,
            "cap": 6,
            "max_answer_tokens": 8,
            "max_example_tokens": 2000,
            "min_epochs": 1,
            "max_epochs": 4,
            "max_learning_rate": 0.01,
            "max_inner_steps": 375,
            **files,
            **settings,
        }
        return ArcDomain(ArcConfig(**options), counting), counting

    return make


def test_rewards_and_reasons(make: Any) -> None:
    domain, service = make(reward="cell_accuracy")
    problems = domain.problems("train")
    assert [p.id for p in problems] == ["task7", "task8"]
    good, other = self_edit(), self_edit(epochs=1, use_basic_augmentations=True)
    answers = [[good, "no JSON", self_edit(indent=2)], [good, self_edit(rate=0.5), other]]
    rewards = domain.rewards(problems, answers)
    # the same self-edit, also written otherwise, is carried out once per task
    assert service.adapters == 3
    assert rewards[0][0] == rewards[0][2]
    assert rewards[0][1] == (
        0.0,
        False,
        "not JSON (Expecting value: line 1 column 1 (char 0)): 'no JSON'",
        None,
    )
    assert rewards[1][1][:2] == (0.0, False)
    assert "learning_rate: got 0.5, allowed are numbers 1e-05..0.01" in rewards[1][1].note
    outcome = domain.outcome(problems[0], good)
    assert rewards[0][0].value == outcome["cell_accuracy"]
    assert rewards[0][0].solved == outcome["solved"]
    base = domain.outcome(problems[0], None)["cell_accuracy"]
    assert rewards[0][0].success == (outcome["cell_accuracy"] > base)
    assert not rewards[0][1].is_success
    assert rewards[0][0].note.startswith(f"{outcome['num_examples']} examples, ")
    assert outcome["num_steps"] == 2 * -(-outcome["num_examples"] // 2)
    assert domain.outcome(problems[0], "no JSON") is None
    assert domain.outcome(problems[0], other) is None

    # known from the batch before
    assert domain.rewards(problems, [[good], [other]]) == [[rewards[0][0]], [rewards[1][2]]]
    assert service.adapters == 3


def test_a_self_edit_solves_what_the_base_model_does_not(make: Any, tmp_path: Path) -> None:
    """Every output is the same, which a tiny model can learn."""
    pairs = [{"input": [[c, 7]], "output": [[7, 4]]} for c in range(1, 4)]
    data = {"constant": {"train": pairs, "test": [{"input": [[5, 7]]}]}}
    (tmp_path / "challenges.json").write_text(json.dumps(data))
    (tmp_path / "solutions.json").write_text(json.dumps({"constant": [[[7, 4]]]}))
    domain, _ = make(
        max_epochs=20,
        challenges_file=tmp_path / "challenges.json",
        solutions_file=tmp_path / "solutions.json",
    )
    [problem] = domain.problems("train")
    edit = self_edit(rate=0.01, epochs=20)
    domain.look_up_base([problem])
    [[reward]] = domain.rewards([problem], [[edit]])
    assert not domain.outcome(problem, None)["solved"]
    assert reward[:2] == (1.0, True), reward.note


def test_a_short_context_leaves_out_what_is_over_it(
    make: Any, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training examples with their answers, and prompts about tests: neither ends the run."""
    domain, _ = make()
    problem = domain.problems("train")[0]
    [whole] = domain.loop.run([(problem.data, domain.loop.job(problem.data, ORACLE))])
    lengths = [d.model_input.length for d in domain.loop.job(problem.data, ORACLE).datums_D]
    assert whole.num_unasked == 0

    short = tmp_path / "short"
    shutil.copytree(model, short)
    config = json.loads((short / "config.json").read_text())
    config["max_position_embeddings"] = min(lengths)
    (short / "config.json").write_text(json.dumps(config))
    domain, service = make(model_name=str(short), mode="oracle")
    with contextlib.closing(connect()) as own:
        service._service = own
        [[reward]] = domain.rewards([problem], [["anything"]])
    outcome = domain.outcome(problem, "anything")
    assert 0 < outcome["num_examples"] < len(lengths)
    assert "training examples are over the context" in caplog.text
    assert outcome["num_unasked"] == 1
    assert "1 tests not asked, their prompts are over the context" in reward.note


def test_too_many_steps_are_refused_with_a_reason(make: Any) -> None:
    domain, service = make(max_inner_steps=3)
    [[reward]] = domain.rewards(domain.problems("train")[:1], [[self_edit(epochs=4)]])
    assert reward.value == 0
    assert "allowed are 3" in reward.note
    assert service.adapters == 0


def test_oracle_and_baseline(make: Any) -> None:
    domain, service = make(mode="oracle")
    problems = domain.problems("train")
    rewards = domain.rewards(problems, [["anything", "at all"], ["", "x"]])
    assert service.adapters == 2
    assert [len(set(group)) for group in rewards] == [1, 1]
    assert domain.outcome(problems[0], "whatever")["num_steps"] == 3 * ORACLE.num_train_epochs
    assert domain.invalid("anything") is None

    domain, service = make(mode="baseline")
    rewards = domain.rewards(problems, [["anything"], [self_edit()]])
    assert service.adapters == 0
    assert all(group[0].note.startswith("0 examples, 0 steps") for group in rewards)
    domain.look_up_base(problems)
    assert domain.outcome(problems[0], "x") == domain.outcome(problems[0], None)


def test_the_state_goes_through_json(make: Any) -> None:
    domain, _ = make()
    problems = domain.problems("train")
    rewards = domain.rewards(problems, [[self_edit()], [self_edit(), "bad"]])
    state = json.loads(json.dumps(domain.state()))
    again, service = make()
    again.load_state(state)
    assert again.rewards(problems, [[self_edit()], [self_edit(), "bad"]]) == rewards
    assert service.adapters == 0
    assert again.state() == state
    new, _ = make()
    new.load_state({})
    assert new.state() == {"known": {}}


def test_the_answers_do_not_depend_on_what_is_trained_together(make: Any) -> None:
    domain, _ = make()
    problems = domain.problems("train")
    domain.rewards(problems, [[self_edit(), self_edit(epochs=1)], [self_edit()]])
    alone, _ = make(max_parallel_adapters=1)
    alone.rewards(problems[1:], [[self_edit()]])
    assert alone.outcome(problems[1], self_edit()) == domain.outcome(problems[1], self_edit())


def test_reward_tokens_are_those_of_all_augmentations(make: Any) -> None:
    domain, _ = make()
    [problem, _] = domain.problems("train")
    edit = self_edit(epochs=2, **dict.fromkeys(FAMILY_OF_FLAG, True))
    job = domain.loop.job(problem.data, parse_self_edit(edit, domain.bounds))
    assert domain.reward_tokens(problem) == job.num_tokens > 0
    # as many epochs as the step limit leaves
    limited, _ = make(max_inner_steps=3)
    assert limited.reward_tokens(problem) == job.num_tokens / 2


def test_self_edits_of_one_reward_are_not_shown_as_best_and_worst(
    make: Any, tmp_path: Path
) -> None:
    domain, _ = make()
    [problem, _] = domain.problems("train")
    answers = [self_edit(), self_edit(epochs=3)]
    domain.rewards([problem], [answers])

    def page(*rewards: float) -> str:
        (tmp_path / "samples.jsonl").unlink(missing_ok=True)
        for answer, reward in zip(answers, rewards, strict=False):
            sample = {"step": 1, "kind": "train", "problem": problem.id, "prompt": "p"}
            sample |= {"answer": answer, "reward": reward, "solved": False, "note": ""}
            append_jsonl(tmp_path / "samples.jsonl", sample)
        problems: Any = {"train": [problem], "test": []}
        return make_report(domain, problems, tmp_path, title="t").html()

    assert "best self-edit: " in page(0.0, 1.0) and "worst self-edit: " in page(0.0, 1.0)
    alike = page(0.0, 0.0)
    assert "one of 2 self-edits, all of the same reward: " in alike
    assert "best self-edit" not in alike and "worst self-edit" not in alike
    assert "the only self-edit: " in page(0.0) and "Held-out tasks" not in alike


def test_equal_self_edits_stand_in_one_row_and_are_counted(make: Any) -> None:
    domain, _ = make(max_inner_steps=7)
    [problem, other] = domain.problems("train")
    answers = [self_edit(), self_edit(indent=1), self_edit(epochs=1), self_edit(epochs=4), "bad"]
    [group, _] = domain.rewards([problem, other], [answers, [self_edit()]])
    domain.look_up_base([problem])
    samples = [
        {"problem": problem.id, "when": when, "answer": answer, "reward": r.value, "note": r.note}
        for when in ("train, batch 1", "held out, after")
        for answer, r in zip(answers, group, strict=True)
    ]
    problems: Any = {"train": [problem, other], "test": []}
    headers, rows = domain.answer_table(problems, samples)
    times = headers.index("times")
    assert [row[times] for row in rows] == [2, 1, 1, 1] * 2
    assert [row[2] for row in rows] == ["batch 1"] * 4 + ["after"] * 4
    outcome = domain.outcome(problem, self_edit())
    assert outcome is not None
    assert rows[0][-1] == f"{outcome['num_steps']}, {outcome['cell_accuracy']:.0%}"
    assert rows[3][-1] == "refused"
    # refused are one with 12 steps and one that is no JSON, each time
    assert domain.summary(problems, samples) == [
        "10 self-edits, 4 of them refused; 2 carried out: equal ones of a task once."
    ]


def test_published_files(make: Any, tmp_path: Path) -> None:
    domain, _ = make()
    samples = [
        {"problem": name, "prompt": "p", "answer": answer, "tokens": [1, 2], "solved": solved}
        for name, answer, solved in (
            ("task7", self_edit(), True),
            ("task7", "bad", False),
            ("task8", self_edit(epochs=3), False),
        )
    ]
    write_published_files(tmp_path, samples, domain.bounds)
    configs = read_configs(tmp_path / CONFIGS_NAME)
    assert set(configs) == {"task7", "task8"}
    assert configs["task7"][0].config == json.loads(self_edit())
    assert configs["task7"][1].config == {}
    assert configs["task7"][1].response == "bad"
    assert configs["task8"][0].token_ids == [1, 2]
    assert read_results(tmp_path / RESULTS_NAME) == {
        0: {"task7": True, "task8": False},
        1: {"task7": False},
    }


def test_summaries(make: Any) -> None:
    domain, _ = make()
    text = self_edit(use_basic_augmentations=True, use_size_augmentations=True)
    assert edit_summary(text, domain.bounds) == "basic+size, outputs, lr 0.01 x 2"
    assert edit_summary("no\n JSON", domain.bounds) == "invalid: no JSON"


def test_a_missing_model_is_named(files: dict[str, Path]) -> None:
    options: dict[str, Any] = {"model_name": "./nowhere", **files}
    with pytest.raises(FileNotFoundError, match=r"model_name='\./nowhere'"):
        ArcDomain(ArcConfig(**options), connect())
