"""The domains that need no model: gsm8k, gym and the registry.

uv run pytest tests/training/domains/test_domains.py
"""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import chz
import pytest
from places import SHARED_DATA

from training.domains.base import Problem
from training.domains.gsm8k import Gsm8kConfig, Gsm8kDomain
from training.domains.gym import GymConfig, GymDomain
from training.domains.gym_guard import doubt, extract_answer, is_safe
from training.domains.registry import domain_config_class, make_domain
from training.grading import same_answer
from training.number_text import parse_number

GSM8K = SHARED_DATA / "gsm8k"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"{GSM8K} is absent")

ROWS = [
    {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
    {"question": "A lot?", "answer": "Many.\n#### 1,250"},
]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------- gsm8k


def test_gsm8k_reads_a_folder_and_grades(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "test.jsonl", ROWS[1:])
    domain = Gsm8kDomain(Gsm8kConfig(data_path=str(tmp_path)))
    problems_P = domain.problems("train")
    assert [problem.data for problem in problems_P] == ["4", "1,250"]
    assert len(domain.problems("test")) == 1
    (message,) = problems_P[0].messages
    assert message["role"] == "user"
    assert message["content"].startswith("Two and two?\n\n")
    assert "\\boxed{}" in message["content"]

    rewards_P_G = domain.rewards(problems_P, [["\\boxed{4}", "4", "\\boxed{5}"], ["#### $1250.00"]])
    assert [[r.value for r in rewards_G] for rewards_G in rewards_P_G] == [[1, 0, 0], [1]]
    assert [r.solved for r in rewards_P_G[0]] == [True, False, False]
    assert rewards_P_G[0][1].note == "no \\boxed{} and no ####"
    assert rewards_P_G[0][2].note == "answered 5, correct is 4"


def test_gsm8k_reads_one_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", ROWS)
    domain = Gsm8kDomain(Gsm8kConfig(data_path=str(path)))
    assert [len(domain.problems(split)) for split in ("train", "test")] == [2, 2]


def test_gsm8k_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*train\.jsonl"):
        Gsm8kDomain(Gsm8kConfig(data_path=str(tmp_path)))
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "?", "answer": "4"}])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: .*####"):
        Gsm8kDomain(Gsm8kConfig(data_path=str(path))).problems("train")
    path.write_text("{}\nnope\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2, byte 1: no JSON"):
        Gsm8kDomain(Gsm8kConfig(data_path=str(path))).problems("train")


@needs_gsm8k
def test_gsm8k_real_data_grades_its_own_solutions() -> None:
    domain = Gsm8kDomain(Gsm8kConfig(data_path=str(GSM8K)))
    problems_P = domain.problems("test")
    assert len(problems_P) == 1319
    assert all(parse_number(problem.data) is not None for problem in problems_P)
    answers = [json.loads(line)["answer"] for line in (GSM8K / "test.jsonl").open()]
    rewards_P_G = domain.rewards(problems_P, [[answer, "#### 0.123"] for answer in answers])
    assert all(right.solved and not wrong.solved for right, wrong in rewards_P_G)


# ------------------------------------------------------------------------------------------- gym


def questions(problems: list[Problem]) -> list[str]:
    return [problem.data["question"] for problem in problems]


def test_gym_is_deterministic_and_its_splits_are_disjoint() -> None:
    config = GymConfig(train_size=60, test_size=20)
    domain = GymDomain(config)
    train, test = domain.problems("train"), domain.problems("test")
    assert len(test) == 20
    assert train == GymDomain(config).problems("train")
    assert not set(questions(train)) & set(questions(test))
    assert len({problem.id for problem in train + test}) == len(train + test)
    other = GymDomain(chz.replace(config, seed=1000)).problems("test")
    assert questions(other) != questions(test)


def test_gym_leaves_test_questions_out_of_train() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config = GymConfig(task_config=tiny, train_size=50, test_size=50)
    domain = GymDomain(config)
    train, test = domain.problems("train"), domain.problems("test")
    assert 0 < len(train) < 50
    assert not set(questions(train)) & set(questions(test))
    with pytest.raises(ValueError, match="every train problem is also in the test split"):
        GymDomain(chz.replace(config, train_size=3, test_size=5000)).problems("train")


def test_gym_scores_right_and_wrong_answers() -> None:
    domain = GymDomain(GymConfig(test_size=3))
    problems_P = domain.problems("test")
    gold_P = [problem.data["answer"] for problem in problems_P]
    answers_P_G = [[gold, f" {gold}\n", f"Sure! <answer> {gold} </answer>", "?"] for gold in gold_P]
    for rewards_G in domain.rewards(problems_P, answers_P_G):
        assert [reward.value for reward in rewards_G] == [1, 1, 1, 0]
        assert [reward.solved for reward in rewards_G] == [True, True, True, False]


def test_gym_survives_a_scorer_that_raises() -> None:
    domain = GymDomain(GymConfig(task="prime_factorization", test_size=1))
    [[reward]] = domain.rewards(domain.problems("test"), [["two times two"]])
    assert (reward.value, reward.solved) == (0.0, False)
    assert "the scorer of prime_factorization raised ValueError" in reward.note


EVALUATING = [
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
]
HOSTILE = [
    "__import__('os').system('touch {}')",
    "[open('{}', 'w') for x in [1]]",
    "exec(chr(112))",
    "[i for i in [1]]",
    "9**9**9**9",
    "9**(9*9*9*9*9*9*9*9*9)",
    "(((9**99)**99)**99)**99",
    "9**999999999",
    "factorial(999999999)",
    "N(pi, 9999999999)",
    "[0]*999999999",
    "x.__class__",
    "1 .__class__",
    "lambda: 0",
]


@pytest.mark.parametrize("task", EVALUATING)
def test_gym_never_runs_an_answer(task: str, tmp_path: Path) -> None:
    domain = GymDomain(GymConfig(task=task, test_size=20))
    problems_P = domain.problems("test")
    trace = tmp_path / "trace"
    answers_G = [text.replace("{}", str(trace)) for text in HOSTILE]
    [rewards_G] = domain.rewards(problems_P[:1], [answers_G])
    assert not any(reward.value for reward in rewards_G)
    assert not trace.exists()
    gold_P_G = [[problem.data["answer"]] for problem in problems_P]
    for [gold], [reward] in zip(gold_P_G, domain.rewards(problems_P, gold_P_G), strict=True):
        # an unsolved Integral(...) differentiates to the problem: right for the scorer, no answer
        assert reward.solved or "Integral(" in gold, gold


def test_gym_knows_every_scorer_that_evaluates() -> None:
    from reasoning_gym.factory import DATASETS

    evaluates = re.compile(r"(?<![\w.])(?:eval|exec|(?:sp\.|sympy\.)?(?:parse_expr|sympify))\(")
    found = []
    for task, (dataset, _) in DATASETS.items():
        scorer = inspect.getsource(dataset.score_answer)
        if evaluates.search(scorer):
            found.append(task)
    # these two evaluate the problem's own expression, not the answer
    assert sorted(set(found) - {"number_sorting", "propositional_logic"}) == EVALUATING


# a task, what is done to its stored answer, and whether the outcome is still right
VARIANTS: list[tuple[str, Callable[[str], str], bool]] = [
    # any text at all
    ("game_of_life_halting", lambda gold: {"True": "False", "False": "True"}[gold], False),
    ("game_of_life_halting", str.lower, True),
    # the beginning of the number, a number near it, one said to be less than nothing
    ("coin_flip", lambda gold: gold[:1], False),
    ("coin_flip", lambda gold: f"{float(gold) + 9e-5:.10g}", False),
    ("coin_flip", lambda gold: str(Fraction(gold)), True),
    ("coin_flip", lambda gold: f"{float(gold):.14f}", True),
    ("gsm_symbolic", lambda gold: f"-{gold}", False),
    ("gsm_symbolic", lambda gold: f"{gold} or {gold}1", False),
    ("gsm_symbolic", lambda gold: f"The answer is {gold}.", True),
    ("number_format", lambda gold: f"{float(gold) + 0.009:.3f}", False),
    ("number_format", lambda gold: f"{float(gold):,.3f}", True),
    ("number_sorting", lambda gold: re.sub(r"-?\d+\.\d+", _one_more, gold, count=1), False),
    ("number_sorting", lambda gold: gold.replace("'", '"'), True),
    ("pool_matrix", lambda gold: f"{float(gold.split()[0]) * 1.009:.4f}{gold[3:]}", False),
    ("power_function", lambda gold: f"{float(gold):.2e}", True),
    ("power_function", lambda gold: f"{float(gold) * 1.0001:.9e}", False),
    ("advanced_geometry", lambda gold: f"{gold},{gold}", False),
    ("complex_arithmetic", lambda gold: "nan", False),
    ("complex_arithmetic", lambda gold: gold.replace(" ", ""), True),
    # Python's way of writing numbers
    ("chain_sum", lambda gold: f"{gold[:-1]}_{gold[-1]}" if len(gold) > 2 else f"0_{gold}", False),
    ("chain_sum", lambda gold: f"{int(gold):,}.00", True),
    ("bitwise_arithmetic", lambda gold: f"{gold[:-1]}_{gold[-1]}", False),
    ("bitwise_arithmetic", lambda gold: str(int(gold, 16)), True),
    # right, and then something else
    ("game_of_life", lambda gold: json.dumps([[*row, 1] for row in json.loads(gold)]), False),
    ("game_of_life", lambda gold: gold.replace("1", "true"), False),
    ("word_sorting", lambda gold: f"{gold}, {gold}", False),
    ("letter_jumble", lambda gold: f"{gold} banana", False),
    ("spell_backward", lambda gold: f"{gold}x", False),
    ("knights_knaves", lambda gold: f"not {gold}", False),
    ("knights_knaves", lambda gold: " and ".join(gold.rstrip(".").split(", and ")[::-1]), True),
    ("fraction_simplification", lambda gold: f"{gold} or 3/4", False),
    ("time_intervals", lambda gold: f"{gold} or 7 days", False),
    ("palindrome_partitioning", lambda gold: json.dumps(json.loads(gold) * 2), False),
    ("palindrome_partitioning", lambda gold: json.dumps(json.loads(gold)[::-1]), True),
    # other numbers than the puzzle's
    ("puzzle24", lambda gold: "3*8*1*1", False),
    ("puzzle24", lambda gold: f"(({gold}))", True),
    ("countdown", lambda gold: f" ({gold}) ", True),
]


def _one_more(number: re.Match[str]) -> str:
    return str(float(number[0]) + 0.01)


@pytest.mark.parametrize(("task", "change", "right"), VARIANTS)
def test_gym_full_scores_are_earned(task: str, change: Callable[[str], str], right: bool) -> None:
    domain = GymDomain(GymConfig(task=task, test_size=8, train_size=1))
    problems_P = domain.problems("test")
    changed = 0
    for problem in problems_P:
        gold = problem.data["answer"]
        answer = change(gold)
        if answer == gold:
            continue
        changed += 1
        [[of_gold, of_answer]] = domain.rewards([problem], [[gold, answer]])
        assert of_gold.value == 1.0, of_gold
        assert of_answer.solved == right, of_answer
    assert changed >= 4


def test_gym_arithmetic_is_exact_and_uses_the_numbers() -> None:
    def why(answer: str, numbers: list[int], target: int) -> str | None:
        entry = {"answer": "", "question": "", "metadata": {"numbers": numbers, "target": target}}
        return doubt(answer, entry, {"metadata"}, "countdown")

    assert why("(100 - 1)*10 + 1/100", [100, 1, 10, 1, 100], 990) == (
        "its value is 99001/100, not 990"
    )
    assert why("2*(3 + 4)", [4, 3, 2], 14) is None
    assert why("7/3*3", [7, 3, 3], 7) is None
    assert why("-(1 - 15)", [1, 15], 14) is None
    assert why("2*7", [4, 3, 2], 14) == "it uses other numbers than [4, 3, 2]"


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("rubiks_cube", "R999999999"),
        ("rubiks_cube", "R99 " * 30),
        ("rush_hour", "A+999999999"),
        ("coin_flip", "1e99999999"),
        ("coin_flip", "1,e99999999"),
        ("coin_flip", "1e9,9,9,9,9,9,9,9"),
        ("coin_flip", "1e9_9_9_9_9_9_9_9"),
        ("polynomial_multiplication", "exp(99999999*log(9))"),
        ("propositional_logic", "¬" * 20000 + "P"),
    ],
)
def test_gym_gives_no_scorer_what_it_would_never_finish(task: str, answer: str) -> None:
    domain = GymDomain(GymConfig(task=task, test_size=1, train_size=1))
    [[reward]] = domain.rewards(domain.problems("test"), [[answer]])
    assert reward.value == 0.0
    assert reward.note.endswith("which its scorer cannot be given")


# data sets whose problems have several right answers, or whose scorers read past what is around one
SEVERAL = {"kakurasu", "n_queens", "quantum_lock", "shortest_path", "sokoban", "tower_of_hanoi"}
SEVERAL |= {"cryptarithm", "simple_integration"}


@pytest.mark.slow
def test_gym_no_data_set_takes_near_misses_for_right() -> None:
    from reasoning_gym.factory import DATASETS

    found = []
    for task in sorted(set(DATASETS) - {"composite"} - SEVERAL):
        domain = GymDomain(GymConfig(task=task, test_size=4, train_size=1))
        problems_P = domain.problems("test")
        golds = {problem.data["answer"] for problem in problems_P} - {None}
        for problem in problems_P:
            gold = problem.data["answer"]
            misses = {*golds, "0", "x", "True", "nan", "[]"}
            if gold is not None:
                misses |= {f"{gold} or 12345", f"{gold} {gold}"}
                if not re.search(r"\d", gold):
                    # a number cut short may still be right, rounded or without its unit
                    misses |= {gold[: len(gold) // 2], gold[:1]}
                misses |= {re.sub(r"\d+", lambda m: str(int(m[0]) + 1), gold, count=1)}
                misses |= {re.sub(r"\d", r"\g<0>_\g<0>", gold, count=1)}
            for answer in misses - {gold}:
                [[reward]] = domain.rewards([problem], [[answer]])
                # 0 is 0.0
                if reward.solved and not (gold and same_answer(answer, gold)):
                    found.append((task, gold, answer))
    assert not found


def test_gym_plain_algebra_is_safe() -> None:
    for answer in (
        "x**2/2 + C",
        "-3*sin(2*x)**2",
        "exp(2*x)*(x - 1)**(1/2)",
        "E**(2*x)*E ** x",
        "0.5*X**(-2)",
    ):
        assert is_safe(answer, "simple_integration")
    assert is_safe("anything(at all)", "chain_sum")
    # the e is a digit
    assert is_safe("0x1e12345", "bitwise_arithmetic")


def test_gym_answer_prefix() -> None:
    domain = GymDomain(GymConfig(test_size=1, answer_prefix="Answer:"))
    problems_P = domain.problems("test")
    assert 'End with "Answer:"' in problems_P[0].messages[0]["content"]
    gold = problems_P[0].data["answer"]
    [[right, bare]] = domain.rewards(problems_P, [[f"Answer: 1? no.\nAnswer: {gold}", gold]])
    assert (right.solved, bare.solved) == (True, False)
    assert bare.note == "no 'Answer:' in the reply"


def test_gym_shots_are_solved_turns_before_every_question() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    domain = GymDomain(GymConfig(task_config=tiny, train_size=300, test_size=60, shots=2))
    test = domain.problems("test")
    shots = test[0].messages[:-1]
    assert [turn["role"] for turn in shots] == ["user", "assistant"] * 2
    for problem in [*domain.problems("train"), *test]:
        assert problem.messages[:-1] == shots
        assert problem.messages[-1]["content"].startswith(problem.data["question"])
    asked = {problem.messages[-1]["content"] for problem in test}
    for question, answer in zip(shots[::2], shots[1::2], strict=True):
        assert question["content"] not in asked
        terms = question["content"].split("problem:")[1].split("=")[0]
        assert sum(int(term) for term in terms.replace("- ", "+ -").split("+")) == int(
            answer["content"]
        )


def test_extract_answer() -> None:
    assert extract_answer(" 4 \n") == "4"
    assert extract_answer("a <answer>1</answer> <answer>\n2\n3 </answer> b") == "2\n3"
    assert extract_answer("<answer>1<answer>2</answer>3</answer>") == "1<answer>2"
    assert extract_answer("1</answer>2<answer>") == "1</answer>2<answer>"
    assert extract_answer("a Answer: 1", "Answer:") == "1"
    assert extract_answer("a", "Answer:") is None
    assert extract_answer("", None) == ""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GymConfig(task="chainsum"), "'chainsum' is no data set .* close are chain_sum.*sorted"),
        (GymConfig(task_config={"terms": 3}), r"\['terms'\]; chain_sum knows .*'max_terms'"),
        (GymConfig(task_config={"seed": 3}), r"\['seed'\]; .* settings of the domain"),
        (GymConfig(task_config={"min_terms": 9}), "refuses task_config={'min_terms': 9}"),
        (GymConfig(task="composite"), "'composite' refuses .*at least one dataset"),
        (GymConfig(shots=-1), "shots=-1"),
        (GymConfig(shots=1, answer_prefix="Answer:"), "only without answer_prefix"),
        (
            GymConfig(
                task_config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
                test_size=5000,
                shots=2,
            ),
            "shots=2: found 0 problems of chain_sum",
        ),
        (GymConfig(test_size=0), "test_size=0: allowed are 1"),
    ],
)
def test_gym_errors(config: GymConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymDomain(config)


def test_gym_config_from_the_command_line() -> None:
    argv = ["task=leg_counting", "task_config.max_animals=3", "train_size=5"]
    config = chz.Blueprint(GymConfig).make_from_argv(argv)
    assert config.task_config == {"max_animals": 3}
    assert len(GymDomain(config).problems("test")) == 100


# -------------------------------------------------------------------------------------- registry


def test_registry_makes_domains() -> None:
    assert domain_config_class("gsm8k") is Gsm8kConfig
    service = None  # neither of these domains asks a model
    domain = make_domain("gym", GymConfig(), service)  # pyrefly: ignore[bad-argument-type]
    assert (domain.name, domain.algorithm, domain.json_schema) == ("gym", "grpo", None)
    with pytest.raises(ValueError, match="takes a config of class GymConfig, got Gsm8kConfig"):
        make_domain("gym", Gsm8kConfig(), service)  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(ValueError, match="domain='math': known are arc, gsm8k, gym"):
        domain_config_class("math")


def test_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, training.domains.registry as r; r.domain_config_class('gym'); "
        "r.domain_config_class('gsm8k'); "
        "print({'torch', 'transformers', 'datasets', 'reasoning_gym', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
