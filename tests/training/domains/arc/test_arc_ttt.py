"""Test-time training on ARC: what is trained, and whole runs on a tiny random model.

uv run pytest tests/training/domains/arc/test_arc_ttt.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
import pytest
import ttt
from chat_templates import CHATML, TOKENIZERS, byte_tokenizer
from kills import kill_again_and_again
from run_results import arc_difference, arc_results
from tiny_chat import save_chat_model
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import ByteLevel as ByteLevelOffsets

from training.adapt import adapt
from training.chat import passage_weights, render_prompt
from training.domains.arc.answers import Answerer, Question
from training.domains.arc.config import SEAL, SMALL, ArcConfig
from training.domains.arc.grids import INVERSES, TRANSFORMS, to_grid
from training.domains.arc.inner import InnerLoop
from training.domains.arc.tasks import SEAL_IDS, Pair, Task, load_kaggle, load_tasks
from training.domains.arc.text import GridParseError, answer_text, format_grid, parse_grid
from training.domains.arc.ttt import ArcRun, ArcTestTime, ArcTTTConfig
from training.domains.arc.ttt_data import TrainingData, TTTSettings
from training.domains.arc.ttt_results import read_records
from training.domains.arc.voting import Prediction, vote
from training.models import load_tokenizer
from utils.config.entrypoint import ConfigError
from utils.runs.files import read_jsonl
from utils.runs.run_dir import RunDir

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def pair(*rows: list[int]) -> Pair:
    """The rows reversed are the output."""
    return Pair(to_grid([list(row) for row in rows]), to_grid([row[::-1] for row in rows]))


THREE = Task("three", (pair([1, 2]), pair([3, 0]), pair([0, 4])), (pair([5, 6]),))
PLAIN = byte_tokenizer(None, ("<s>", "</s>"), eos="</s>", bos="<s>", adds_bos=True)


def settings(**changes: Any) -> TTTSettings:
    options: dict[str, Any] = {"model_name": "m", "cap": 1000, "lora_rank": 4, **changes}
    return ArcTTTConfig(**options).settings(4096)


def data(tokenizer: Any, **changes: Any) -> TrainingData:
    made = settings(**changes)
    return TrainingData(tokenizer, Answerer(tokenizer, made), made)


# ---------------------------------------------------------------------------------- what is trained


def trained_texts(tokenizer: Any, tokens: list[int], weights: list[float]) -> list[str]:
    """The text of each run of tokens that are trained."""
    runs: list[list[int]] = []
    before = 0.0
    for token, weight in zip(tokens, weights, strict=True):
        assert weight in (0.0, 1.0)
        if weight and not before:
            runs.append([])
        if weight:
            runs[-1].append(token)
        before = weight
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


ENDS = {
    "chatml": "<|im_end|>",
    "llama": "<|eot|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "plain": "\n\nUser:",
}
LEADS = {"mistral": " ", "plain": " "}


@pytest.mark.parametrize("grid_format", ["numpy", "digits", "words"])
@pytest.mark.parametrize("name", ENDS)
def test_the_outputs_from_the_second_demonstration_on_are_trained(
    name: str, grid_format: Any
) -> None:
    tokenizer = PLAIN if name == "plain" else TOKENIZERS[name]
    made = data(tokenizer, grid_format=grid_format)
    tokens, weights = made.rendered(THREE)
    texts = [
        answer_text(one.output, grid_format)
        for one in (*THREE.train[1:], *THREE.test)
        if one.output is not None
    ]
    texts[-1] = LEADS.get(name, "") + texts[-1] + ENDS[name]
    assert trained_texts(tokenizer, tokens, weights) == texts

    # token by token: with one token a byte, the text's own positions say which are trained
    text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    expected: list[float] = []
    place = 0
    for part in texts:
        start = text.index(part, place)
        # what looks like an output may be an input before
        start = text.rindex(part) if part is texts[-1] else start
        heads = tokenizer.encode(text[place:start], add_special_tokens=False)
        expected += [0.0] * len(heads)
        expected += [1.0] * len(tokenizer.encode(part, add_special_tokens=False))
        place = start + len(part)
    expected += [0.0] * (len(tokens) - len(expected))
    assert weights == expected

    # the tokens are the sampler's, up to the answer
    prompt = render_prompt(tokenizer, Answerer(tokenizer, made.settings).messages(THREE))
    assert tokens[: len(prompt)] == prompt


def test_without_demonstration_loss_only_the_answer_is_trained() -> None:
    tokenizer = TOKENIZERS["chatml"]
    made = data(tokenizer, demonstration_loss=False, grid_format="digits")
    tokens, weights = made.rendered(THREE)
    assert trained_texts(tokenizer, tokens, weights) == ["65#<|im_end|>"]
    assert tokens == data(tokenizer, grid_format="digits").rendered(THREE).tokens


@pytest.mark.parametrize("num_demonstrations", [0, 1])
def test_the_first_demonstration_is_not_trained(num_demonstrations: int) -> None:
    tokenizer = TOKENIZERS["chatml"]
    example = Task("t", THREE.train[:num_demonstrations], THREE.test)
    rendered = data(tokenizer, grid_format="digits").rendered(example)
    assert trained_texts(tokenizer, *rendered) == ["65#<|im_end|>"]


def test_a_token_across_a_border_is_trained_whole() -> None:
    """` [[` begins an output, and has the space of the arrow before it; `#\\n` ends it. Offsets
    are told without leading spaces, as by GPT-2's tokenizer and those made like it."""
    merging = byte_tokenizer(
        CHATML,
        ("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        merges=(("Ġ", "["), ("Ġ[", "["), ("]", "Ċ"), ("]", "]"), ("#", "Ċ")),
    )
    merging.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    merging.backend_tokenizer.post_processor = ByteLevelOffsets(trim_offsets=True)
    train = (pair([1, 2]), pair([3, 0], [0, 0]), pair([0, 4]))
    tokens, weights = data(merging, grid_format="numpy").rendered(Task("t", train, THREE.test))
    assert {" [[", "]\n", " [", "#\n"} <= {merging.decode([token]) for token in tokens}
    assert trained_texts(merging, tokens, weights) == [
        " [[0 3]\n [0 0]]#\n",
        " [[4 0]]#\n",
        "[[6 5]]#<|im_end|>",
    ]


@pytest.mark.parametrize("grid_format", ["numpy", "digits", "words"])
def test_the_embedded_models_tokenizer(grid_format: Any) -> None:
    tokenizer = load_tokenizer("embedded")
    tokens, weights = data(tokenizer, grid_format=grid_format).rendered(THREE)
    pairs = (*THREE.train[1:], *THREE.test)
    texts = [answer_text(one.output, grid_format) for one in pairs if one.output is not None]
    texts[-1] += "<|im_end|>"
    found = trained_texts(tokenizer, tokens, weights)
    # ` [[` is one token there
    assert [text.strip() for text in found] == texts
    assert all(text.strip() == text for text in found) == (grid_format != "numpy")


def test_passages_that_the_template_rewrites_are_refused() -> None:
    upper = byte_tokenizer(CHATML.replace("m.content", "m.content | upper"), ("<|im_end|>",))
    with pytest.raises(ValueError, match="rewrites the messages"):
        passage_weights(upper, [{"role": "user", "content": "abc"}], [("a", True), ("bc", False)])


# ------------------------------------------------------------------------------ examples, ablations


def test_leave_two_out_tops_up_to_the_cap() -> None:
    made = data(TOKENIZERS["chatml"], transformations=False, cap=1000)
    examples = made.examples(THREE)
    one_left_out = [task for task in examples.tasks if len(task.train) == 2]
    two_left_out = [task for task in examples.tasks if len(task.train) == 1]
    assert len(one_left_out) >= 3
    assert len(two_left_out) == 6
    assert set(examples.counts) == {"original"}

    few = data(TOKENIZERS["chatml"], transformations=False, cap=len(one_left_out) + 2)
    topped = few.examples(THREE).tasks
    assert topped[: len(one_left_out)] == one_left_out
    assert sum(len(task.train) == 1 for task in topped) == 2

    cut = data(TOKENIZERS["chatml"], cap=20).examples(THREE).tasks
    assert len(cut) == 20
    # transformations make more than the cap of leave-one-out examples: no topping up
    assert all(len(task.train) == 2 for task in cut)


def test_transformations() -> None:
    examples = data(TOKENIZERS["chatml"]).examples(THREE)
    assert all(examples.counts[family] for family in ("basic", "size", "chain", "repeat"))
    plain = data(TOKENIZERS["chatml"], transformations=False).examples(THREE)
    shapes = {grid.shape for task in plain.tasks for grid in task.grids}
    assert shapes == {(1, 2)}


@pytest.mark.parametrize("method", ["e2e", "shared_e2e"])
def test_direct_training_shows_no_demonstrations(method: str) -> None:
    tokenizer = TOKENIZERS["chatml"]
    made = data(tokenizer, method=method, transformations=False, grid_format="digits")
    examples = made.examples(THREE)
    assert examples.tasks == [Task("three", (), (one,)) for one in THREE.train]
    for example in examples.tasks:
        tokens, weights = made.rendered(example)
        output = example.test[0].output
        assert output is not None
        text = f"{format_grid(output, 'digits')}#<|im_end|>"
        assert trained_texts(tokenizer, tokens, weights) == [text]
        text = tokenizer.decode(tokens)
        assert sum(format_grid(one.input, "digits") in text for one in THREE.train) == 1


def test_direct_voting_prompts() -> None:
    made = settings(method="e2e", evaluation="vote")
    prompts = Answerer(TOKENIZERS["chatml"], made).prompts(Task("t", (), THREE.test), 0)
    assert all(prompt.task.train == () for prompt in prompts)
    assert len({prompt.inverse for prompt in prompts}) > 1
    assert prompts[0].inverse == "identity"


def test_too_long_examples_are_left_out_and_counted() -> None:
    tokenizer = TOKENIZERS["chatml"]
    all_of_them = data(tokenizer)
    lengths = sorted(len(all_of_them.rendered(t).tokens) for t in all_of_them.examples(THREE).tasks)
    limit = lengths[len(lengths) // 2]
    examples = data(tokenizer, max_example_tokens=limit).examples(THREE)
    assert examples.num_too_long > 0
    assert all(len(all_of_them.rendered(task).tokens) < limit for task in examples.tasks)


def test_a_template_without_system_role_gets_one_message() -> None:
    messages = Answerer(TOKENIZERS["gemma"], settings()).messages(THREE)
    assert [message["role"] for message in messages] == ["user"]


# ----------------------------------------------------------------------------------------- settings


def test_published_settings() -> None:
    """arXiv 2411.07279 and its code."""
    made = ArcTTTConfig(model_name="m").settings(None)
    assert made.adapt.lora == {
        "rank": 128,
        "lora_alpha": 16.0,
        "lora_dropout": 0.0,
        "target_modules": list(SEAL.lora_targets),
    }
    assert (made.learning_rate, made.num_epochs, made.cap, made.permute_n) == (5e-5, 2, 250, 1)
    assert (made.adapt.batch_size, made.adapt.weight_decay) == (2, 0.01)
    assert made.adapt.warmup_share == 0.1
    assert (made.evaluation, made.max_example_tokens) == ("vote", 8192)


class FakeClient:
    """A service, its only client, and futures that are there at once."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def create_lora_training_client(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def forward_backward(self, *args: Any) -> Any:
        return self

    def optim_step(self, params: Any) -> Any:
        self.rates.append(params.learning_rate)
        return self

    def save_weights_and_get_sampling_client(self) -> Any:
        return self

    def result(self) -> Any:
        return None


def test_a_tenth_of_the_steps_warm_up() -> None:
    made = data(TOKENIZERS["chatml"], cap=40, batch_size=2, lr=1.0, epochs=2)
    fake: Any = FakeClient()
    job = made.job(made.prepare(THREE))
    adapt(fake, "m", [job], made.settings.adapt, on_adapted=lambda *_: None)
    assert len(fake.rates) == 40
    assert fake.rates[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert fake.rates[5] < 1.0


def test_the_embedded_model_gets_the_small_preset() -> None:
    made = ArcTTTConfig().settings(2048)
    assert (made.cap, made.grid_format, made.evaluation) == (24, "digits", "greedy")
    assert made.adapt.batch_size == 2
    assert made.adapt.lora["rank"] == SMALL.lora_rank
    assert ArcTTTConfig(lr=0.5, epochs=7, cap=9).settings(None).learning_rate == 0.5
    # a context below the limit on examples bounds them
    assert ArcTTTConfig(model_name="m").settings(2048).max_example_tokens == 2048


def test_splits() -> None:
    def ids(**options: Any) -> list[str]:
        return [task.id for task in ArcTTTConfig(**options).load_tasks()]

    everything = ids()
    assert everything == ids(split="train") + ids(split="test")
    assert ids(max_tasks=2) == everything[:2]
    assert len(ids(task_set="seal")) == 10
    assert len(ids(task_set="seal", split="all")) == 22
    assert ids(task_set="ids", task_ids=["007bbfb7"]) == ["007bbfb7"]


WRONG = [
    ({"task_set": "tiny"}, "task_set='tiny': allowed are auto, ids, small, seal, arc1, arc2"),
    ({"task_set": "ids"}, "task_set=ids needs task_ids"),
    ({"task_ids": ["a"]}, "task_ids need task_set=ids or a challenges_file"),
    ({"task_set": "ids", "task_ids": ["zzz"]}, "unknown ARC tasks ['zzz']"),
    ({"task_set": "ids", "task_ids": ["a", "a"]}, "task_ids names a more than once"),
    ({"task_set": "ids", "task_ids": ["a"], "split": "test"}, "split=test: only the named"),
    ({"solutions_file": Path("s")}, "solutions_file needs the challenges_file"),
    ({"challenges_file": Path("nowhere.json")}, "nowhere.json: no such challenges file"),
    ({"cap": 0}, "cap=0: at least 1 is needed"),
    ({"max_parallel_adapters": 0}, "max_parallel_adapters=0: at least 1 is needed"),
    ({"lr": float("nan")}, "lr=nan: a number from 0 is needed"),
    ({"lora_alpha": 0.0}, "lora_alpha=0.0: a number above 0 is needed"),
    ({"lora_dropout": 1.0}, "lora_dropout=1.0: from 0 to below 1 is needed"),
    ({"lora_targets": []}, "lora_targets=[]: name at least one layer"),
    ({"permute_n": -1}, "permute_n=-1: 0 or more is needed"),
    ({"lora_rank": 4000}, "lora_rank=4000: at most 32 is allowed"),
    ({"model_name": "./nowhere"}, "model_name='./nowhere': the folder does not exist"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_bad_input(model: str, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model_name": model, "lora_rank": 4, **options}
    with pytest.raises(ConfigError) as error:
        ArcTestTime(ArcTTTConfig(**given))
    assert message in str(error.value)


def test_bad_input_is_told_together(model: str, tmp_path: Path) -> None:
    challenges = tmp_path / "challenges.json"
    challenges.write_text(json.dumps({"a": {"train": [], "test": [{"input": [[11]]}]}, "b": 3}))
    with pytest.raises(ConfigError) as error:
        ArcTestTime(
            ArcTTTConfig(model_name=model, challenges_file=challenges, cap=0, lora_rank=4000)
        )
    text = str(error.value)
    for part in ("cap=0", "lora_rank=4000", "a.train", "a.test[0].input", "b: expected an object"):
        assert part in text
    assert str(challenges) in text


# --------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="0123456789#\n")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three tasks: in `constant` every output is the same, `twice` has two tests."""
    folder = tmp_path_factory.mktemp("tasks")
    constant = [{"input": [[c, 7]], "output": [[7, 4]]} for c in range(1, 4)]
    mirrored = [{"input": [[c, 8]], "output": [[8, c]]} for c in range(1, 4)]
    challenges = {
        "constant": {"train": constant, "test": [{"input": [[5, 7]]}]},
        "mirror": {"train": mirrored, "test": [{"input": [[5, 8]]}]},
        "twice": {"train": mirrored[:2], "test": [{"input": [[6, 8]]}, {"input": [[9, 8]]}]},
    }
    solutions = {"constant": [[[7, 4]]], "mirror": [[[8, 5]]], "twice": [[[8, 6]], [[8, 9]]]}
    paths = {"challenges_file": folder / "c.json", "solutions_file": folder / "s.json"}
    paths["challenges_file"].write_text(json.dumps(challenges))
    paths["solutions_file"].write_text(json.dumps(solutions))
    return paths


FAST: dict[str, Any] = {
    "lora_rank": 4,
    "cap": 6,
    "max_answer_tokens": 8,
    "grid_format": "digits",
    "evaluation": "greedy",
    "lr": 0.01,
    "epochs": 2,
}


@pytest.fixture
def make(model: str, files: dict[str, Path]) -> Callable[..., ArcTestTime]:
    def make(**options: Any) -> ArcTestTime:
        given: dict[str, Any] = {"model_name": model, **FAST, **files, **options}
        return ArcTestTime(ArcTTTConfig(**given))

    return make


def run_whole(work: ArcTestTime, service: Any, path: Path) -> str:
    with RunDir.open("ttt", path, work.config, data=work.data()) as run:
        work.load(service, run)
        work.train_and_answer(run)
        return work.finish(run)


def test_training_solves_what_the_base_model_does_not(
    make: Any, service: Any, tmp_path: Path
) -> None:
    # doubled and mirrored outputs would be other constants
    work = make(epochs=30, cap=12, task_ids=["constant"], transformations=False, permute_n=0)
    text = run_whole(work, service, tmp_path / "run")
    [record] = read_records(tmp_path / "run")
    assert not record.before.solved
    assert record.after is not None
    assert record.after.solved, record.after.answers
    assert record.after.attempts == [[[[7, 4]]]]
    assert record.examples == {"original": 9}
    assert record.num_steps == 30 * 5
    assert "1 of 1" in text
    assert json.loads((tmp_path / "run" / "submission.json").read_text()) == {
        "constant": [{"attempt_1": [[7, 4]], "attempt_2": [[7, 4]]}]
    }
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Task constant: answers to the test" in report
    assert ">before<" in report
    assert ">after<" in report


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["ttt", "shared_ttt", "e2e", "baseline"])
def test_an_interrupted_run_goes_on_and_ends_the_same(
    make: Any, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    options = {"method": method, "max_parallel_adapters": 2}
    whole = run_whole(make(**options), service, tmp_path / "whole")
    assert "all" in whole

    records = ArcRun.records

    def one_then_stop(self: ArcRun, *args: Any) -> Any:
        for number, record in enumerate(records(self, *args)):
            if number == 1:
                raise Stop
            yield record

    with monkeypatch.context() as patched:
        patched.setattr(ArcRun, "records", one_then_stop)
        with pytest.raises(Stop):
            run_whole(make(**options), service, tmp_path / "parts")
    assert [record.task for record in read_records(tmp_path / "parts")] == ["constant"]
    # as kills in the middle of a write, and between a task's record and its metrics, leave it
    with (tmp_path / "parts" / "tasks.jsonl").open("a") as log:
        log.write('{"task": "mir')
    (tmp_path / "parts" / "metrics.jsonl").unlink()

    trained: list[int] = []
    asked: list[str] = []

    def adapt_counted(
        service: Any, model: str, jobs: list[Any], *args: Any, **options: Any
    ) -> None:
        trained.append(len(jobs))
        adapt(service, model, jobs, *args, **options)

    ask = Answerer.ask

    def ask_noted(self: Answerer, task: Task, sampler: Any) -> Any:
        asked.append(task.id)
        return ask(self, task, sampler)

    with monkeypatch.context() as patched:
        patched.setattr("training.domains.arc.ttt.adapt", adapt_counted)
        patched.setattr(Answerer, "ask", ask_noted)
        run_whole(make(**options), service, tmp_path / "parts")
    assert trained == {"baseline": [], "shared_ttt": [1]}.get(method, [2])
    assert set(asked) == {"mirror", "twice"}
    assert arc_difference(tmp_path / "parts", tmp_path / "whole") is None
    lines, done = read_jsonl(tmp_path / "whole" / "metrics.jsonl"), read_records(tmp_path / "whole")
    stage = "before" if method == "baseline" else "after"
    cells = [line[f"{stage}/cell_accuracy/{r.task}"] for line, r in zip(lines, done, strict=True)]
    assert lines[-1][f"{stage}/cell_accuracy/mean"] == pytest.approx(sum(cells) / len(cells))
    # done is done: nothing is trained or asked
    run_whole(make(**options), None, tmp_path / "parts")
    assert arc_difference(tmp_path / "parts", tmp_path / "whole") is None


def test_other_tasks_than_before_are_refused(make: Any, service: Any, tmp_path: Path) -> None:
    """Between the parts of a run, its challenges file was given other contents."""
    path = tmp_path / "c.json"

    def write(**inputs: int) -> Any:
        pairs = [{"input": [[1]], "output": [[1]]}] * 2
        tasks = {
            name: {"train": pairs, "test": [{"input": [[cell]]}]} for name, cell in inputs.items()
        }
        path.write_text(json.dumps(tasks))
        return make(challenges_file=path, solutions_file=None, method="baseline")

    run_whole(write(a=1, b=1, c=1), service, tmp_path / "run")
    before = arc_results(tmp_path / "run")
    with pytest.raises(ConfigError) as error:
        run_whole(write(a=1, b=2, d=1), service, tmp_path / "run")
    [told, problem] = error.value.problems
    assert "was started with other data" in told
    assert problem.startswith(f"challenges_file: {path} holds something else than at the start")
    assert arc_results(tmp_path / "run") == before


@pytest.mark.slow
def test_kills_change_nothing(model: str, tmp_path: Path) -> None:
    # so many tasks that the first are done when the kills come
    tasks = {
        f"shift{by}": {
            "train": [{"input": [[c, by]], "output": [[by, c]]} for c in range(1, 4)],
            "test": [{"input": [[c, by]]} for c in range(5, 5 + 1 + by % 2)],
        }
        for by in range(6)
    }
    solutions = {
        name: [[pair["input"][0][::-1]] for pair in task["test"]] for name, task in tasks.items()
    }
    files = {"challenges_file": tmp_path / "c.json", "solutions_file": tmp_path / "s.json"}
    files["challenges_file"].write_text(json.dumps(tasks))
    files["solutions_file"].write_text(json.dumps(solutions))
    options = {"evaluation": "vote", "max_parallel_adapters": 1, "cap": 4}
    report = kill_again_and_again("ttt_arc", tmp_path, *arguments(model, files, **options))
    log = (tmp_path / "log.txt").read_text()
    # a line when a task is done, in each of the runs one after the other and in the reference
    for task in tasks:
        assert log.count(f"{task}: solved") <= report["runs"] + 1


def test_votes_and_a_submission_of_several_tests(make: Any, service: Any, tmp_path: Path) -> None:
    work = make(evaluation="vote", task_ids=["twice", "mirror"])
    run_whole(work, service, tmp_path / "run")
    submission = json.loads((tmp_path / "run" / "submission.json").read_text())
    # in the order that was asked for
    assert list(submission) == ["twice", "mirror"]
    assert [len(tests) for tests in submission.values()] == [2, 1]
    by_task = {record.task: record for record in read_records(tmp_path / "run")}
    for task_id, tests in submission.items():
        after = by_task[task_id].after
        assert after is not None
        assert [[t["attempt_1"], t["attempt_2"]] for t in tests] == after.attempts


REAL = ["67a3c6ac", "68b67ca3", "44f52bb0"]


def test_votes_on_real_tasks(model: str, service: Any, tmp_path: Path) -> None:
    """The attempts are the vote over what was answered, read and turned back one by one."""
    config = ArcTTTConfig(
        model_name=model,
        task_set="ids",
        task_ids=REAL,
        **(FAST | {"evaluation": "vote", "max_answer_tokens": 4, "cap": 2}),
    )
    work = ArcTestTime(config)
    run_whole(work, service, tmp_path / "run")
    answerer = Answerer(load_tokenizer(model), config.settings(4096))
    differing = 0
    for record, task in zip(read_records(tmp_path / "run"), load_tasks(REAL), strict=True):
        assert record.after is not None
        for answered in (record.before, record.after):
            texts = iter(answered.answers)
            unreadable = 0
            for test, attempts in enumerate(answered.attempts):
                voters = []
                for prompt in answerer.prompts(task, test):
                    try:
                        grid = parse_grid(next(texts), "digits")
                    except GridParseError:
                        unreadable += 1
                    else:
                        voters.append(Prediction(TRANSFORMS[prompt.inverse](grid), prompt.inverse))
                assert attempts == [grid.tolist() for grid in vote(voters)]
                distinct = {str(voter.grid.tolist()) for voter in voters}
                assert (attempts[0] != attempts[1]) == (len(distinct) > 1)
                differing += len(distinct) > 1
            assert next(texts, None) is None
            assert answered.events.get("unreadable", 0) == unreadable
    assert differing


class Said:
    """The future of an answer."""

    def __init__(self, tokens: list[int]) -> None:
        self.sequences = [self]
        self.tokens = tokens

    def result(self) -> Any:
        return self


@pytest.mark.parametrize("grid_format", ["numpy", "digits", "words"])
def test_right_answers_to_real_tasks_are_turned_back(grid_format: Any) -> None:
    """Every prompt is answered in its own frame, two of them wrongly: the first attempt is the
    solution, the second the commoner mistake."""
    tokenizer = TOKENIZERS["chatml"]
    config = ArcTTTConfig(
        model_name="m", evaluation="vote", grid_format=grid_format, max_example_tokens=10**6
    )
    answerer = Answerer(tokenizer, config.settings(None))
    forward = {inverse: name for name, inverse in INVERSES.items()}
    wrong = to_grid([[1, 2], [3, 4]])
    for task in load_tasks([*SEAL_IDS["seal_eval"], *REAL]):
        questions = []
        for test, pair in enumerate(task.test):
            prompts = answerer.prompts(task, test)
            assert len({prompt.inverse for prompt in prompts}) > 1
            for number, prompt in enumerate(prompts):
                turn = TRANSFORMS[forward[prompt.inverse]]
                # what is asked is the task in that frame
                assert set(prompt.task.train) <= {one.map(turn) for one in task.train}
                assert prompt.task.test[0] == Pair(turn(pair.input))
                assert pair.output is not None
                answer = wrong if number < 2 else pair.output
                text = answer_text(to_grid(turn(answer)), grid_format)
                future: Any = Said(tokenizer.encode(text, add_special_tokens=False))
                questions.append(Question(test, prompt, future))
        answers = answerer.read(task, questions)
        assert answers.num_unreadable == 0
        for attempts, pair in zip(answers.attempts, task.test, strict=True):
            assert pair.output is not None
            assert [grid.tolist() for grid in attempts] == [pair.output.tolist(), wrong.tolist()]


def test_without_solutions_nothing_is_scored(make: Any, service: Any, tmp_path: Path) -> None:
    text = run_whole(make(solutions_file=None), service, tmp_path / "run")
    assert "?" in text
    assert all(record.last.solved is None for record in read_records(tmp_path / "run"))
    assert len(json.loads((tmp_path / "run" / "submission.json").read_text())) == 3


def test_one_shared_adapter(make: Any, service: Any, tmp_path: Path) -> None:
    text = run_whole(make(method="shared_ttt"), service, tmp_path / "run")
    records = read_records(tmp_path / "run")
    assert {record.adapter for record in records} == {"shared"}
    # 6 examples of each of three tasks, 2 epochs, 2 examples per step
    assert {record.num_steps for record in records} == {18}
    assert " 18 " in text.splitlines()[-5]


@pytest.mark.parametrize("evaluation", ["greedy", "vote"])
def test_the_baseline_is_what_the_inner_loop_calls_base(
    make: Any,
    service: Any,
    tmp_path: Path,
    model: str,
    files: dict[str, Path],
    evaluation: Any,
) -> None:
    run_whole(make(method="baseline", evaluation=evaluation), service, tmp_path / "run")
    records = read_records(tmp_path / "run")
    config = ArcConfig(
        model_name=model,
        seed=42,
        grid_format="digits",
        evaluation=evaluation,
        max_answer_tokens=8,
        max_example_tokens=8192,
    )
    loop = InnerLoop(service, load_tokenizer(model), config.inner())
    tasks = load_kaggle(files["challenges_file"], files["solutions_file"])
    outcomes = loop.run([(task, None) for task in tasks])
    assert all(record.after is None for record in records)
    for record, outcome in zip(records, outcomes, strict=True):
        attempts = [[grid.tolist() for grid in grids] for grids in outcome.attempts]
        assert record.before.attempts == attempts
        assert record.before.answers == outcome.answers
        assert record.before.cell_accuracy == outcome.score.cell_accuracy


def test_a_prompt_over_the_context_is_an_event(make: Any, service: Any, tmp_path: Path) -> None:
    work = make(task_ids=["mirror"], method="baseline")
    base = work.config.settings(20)
    tasks = load_kaggle(work.config.challenges_file, work.config.solutions_file)[1:2]
    [record] = ArcRun(service, load_tokenizer(base.base_model), base).records(tasks, [])
    assert record.before.events == {"prompt too long": 1}
    assert record.before.attempts == [[[[0]]]]
    assert record.before.solved is False


@pytest.mark.parametrize("method", ["ttt", "shared_ttt", "baseline"])
def test_the_plan_is_what_is_then_trained(
    make: Any, service: Any, tmp_path: Path, method: str
) -> None:
    work = make(method=method)
    plan = work.plan()
    run_whole(work, service, tmp_path / "run")
    records = read_records(tmp_path / "run")
    total = sum({record.adapter: record.num_steps for record in records}.values())
    assert f"3 tasks, {total} steps in all" in plan
    for record in records:
        [line] = [line for line in plan.splitlines() if line.startswith(record.task)]
        for count in record.examples.values():
            assert str(count) in line.split()


# --------------------------------------------------------------------------------------- the script


def arguments(model: str, files: dict[str, Path], **options: Any) -> list[str]:
    given = {"domain": "arc", "model_name": model, **FAST, **files, **options}
    return [f"{key}={value}" for key, value in given.items()]


def test_the_script(
    model: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ttt.entrypoint(arguments(model, files, dry_run=True))
    assert "3 tasks, " in capsys.readouterr().out
    ttt.entrypoint(arguments(model, files, log_path=tmp_path / "run"))
    printed = capsys.readouterr().out
    # too wide for 100 columns as they are, so headers take two lines
    assert printed.partition("─")[0].split().count("cells") == 2
    for name in ("config.yaml", "tasks.jsonl", "metrics.jsonl", "submission.json", "report.html"):
        assert (tmp_path / "run" / name).is_file()


def test_the_script_tells_what_is_wrong(
    model: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ttt.entrypoint(arguments(model, files, task_ids="nothing,mirror", lr=-1, cap=0))
    told = capsys.readouterr().err
    for part in ("has no tasks nothing", "lr=-1", "cap=0"):
        assert part in told


def test_fields_do_not_clash_with_the_scripts() -> None:
    """A field of the script hides one of the domain: only those that mean the same may be both."""
    common = set(chz.chz_fields(ArcTTTConfig)) & set(chz.chz_fields(ttt.Config))
    assert common == {"model_name", "seed", "max_parallel_adapters"}
