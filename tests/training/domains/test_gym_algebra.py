"""Answers to the algebra tasks of reasoning-gym, against sympy where it can be asked.

uv run pytest tests/training/domains/test_gym_algebra.py
"""

from typing import Any

import pytest
import sympy

from training.domains.gym import GymConfig, GymDomain
from training.domains.gym_algebra import FUNCTIONS, is_antiderivative, is_small

INTEGRATIONS = ["simple_integration", "intermediate_integration"]
# each keeps sympy.simplify, or reading alone, busy for more than fifteen seconds, or for ever
ENDLESS = [
    "(1+x+a+b+c)**99",
    "(1+x+C)**99 - x**99",
    "exp(99999999*log(9))",
    "exp(log(9)*x*99999999)",
    "x*sin(exp(exp(99)))",
    "E**(99999999*log(9))",
    "x*E**E**E**E**9",
    "(((9**99)**99)**99)**99",
    "(9**99)**99",
    "x*2 + cosh((18 - x)*atan(x))",
    "sin(x*pi*(x - pi - C - 9))**5",
    "(x + pi)*tanh(x + pi + C)",
    "+".join(f"1/(x + C + {i})" for i in range(1, 20)),
    "x**2 + 0.000000000000001*(x + pi)*tanh(x + pi + C)",
]


@pytest.mark.parametrize("task", INTEGRATIONS)
def test_integration_needs_no_sympy(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = GymDomain(GymConfig(task=task, test_size=8, train_size=1))
    problems_P = domain.problems("test")

    def score_answer(*_: Any) -> float:
        raise AssertionError("the scorer was asked")

    monkeypatch.setattr(type(domain._datasets["test"]), "score_answer", score_answer)
    [rewards_G] = domain.rewards(
        problems_P[:1], [[*ENDLESS, "x/(x - x)", "x**", "sin*x", "pi(x)", "(" * 300]]
    )
    assert not any(reward.value for reward in rewards_G)
    for problem in problems_P:
        gold, variable = problem.data["answer"], problem.data["metadata"]["variable"]
        if "Integral(" in gold:
            continue
        answers = [gold, f"({gold})*2/2 - K", f"{gold} + {variable}", f"1.000001*({gold})"]
        [rewards_G] = domain.rewards([problem], [answers])
        assert [reward.value for reward in rewards_G] == [1, 1, 0, 0], gold
        assert [reward.solved for reward in rewards_G] == [True, True, False, False]


@pytest.mark.parametrize("task", INTEGRATIONS)
def test_the_scores_are_those_of_reasoning_gym(task: str) -> None:
    domain = GymDomain(GymConfig(task=task, test_size=8, train_size=1))
    problems_P = domain.problems("test")
    golds = [
        problem.data["answer"]
        for problem in problems_P
        if "Integral(" not in problem.data["answer"]
    ]
    for problem in problems_P:
        own = problem.data["answer"]
        answers = [*golds[:3], *([own, f"2*({own})", f"-({own})"] if own in golds else [])]
        [rewards_G] = domain.rewards([problem], [answers])
        scores = [domain._datasets["test"].score_answer(a, problem.data) for a in answers]
        assert [reward.value for reward in rewards_G] == scores


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_slopes_are_those_of_sympy(function: str) -> None:
    for inner in ("x", "x**2 - x/3", "X/14 + C*2"):
        variable = "X" if "X" in inner else "x"
        answer = f"3*{variable}*{function}({inner})**2 - C"
        slope = str(sympy.diff(sympy.parse_expr(answer), sympy.Symbol(variable)))
        assert is_antiderivative(answer, slope, variable)
        assert not is_antiderivative(answer, f"{slope} + {variable}/10**40", variable)
        assert not is_antiderivative(f"1.00000000000001*({answer})", slope, variable)


@pytest.mark.parametrize(
    ("integrand", "answer"),
    [
        ("2*x", "x**2"),
        ("-3/x**4", "x**(-3) + C"),
        ("sin(x)*cos(x)", "-cos(2*x)/4 + K"),
        ("asin(3*x)", "x*asin(3*x) + sqrt(1 - 9*x**2)/3 + C"),
        ("asin(3*x)", "x*(pi/2 - acos(3*x)) + (1 - 9*x**2)**(1/2)/3"),
        ("log(x**3)", "x*ln(x**3) - 3*x"),
        ("exp(x)*sin(x)", "exp(x)*(sin(x) - cos(x))/2 + C"),
        ("exp(x)*sin(x)", "E**x*(sin(x) - cos(x))/2"),
        ("6*x*exp(3*x**2 - 1)", "E**(3*x**2)/E + C - C"),
        ("(19*x + 39)**9", "(19*x + 39)**10/190"),
        ("-9*sqrt(5 - 9*x)", "2*(5 - 9*x)**(3/2)/3 + C"),
        ("-9*sqrt(-9*x - 5)", "2*(-9*x - 5)*sqrt(-9*x - 5)/3"),
    ],
)
def test_right_antiderivatives_in_other_forms(integrand: str, answer: str) -> None:
    assert is_antiderivative(answer, integrand, "x")
    assert not is_antiderivative(f"{answer} - x", integrand, "x")


@pytest.mark.parametrize(
    "answer",
    [
        # right for positive x alone
        "x*sqrt(x**2)",
        # a difference that is hidden by its size, or by what it stands beside
        "x**2 + x*exp(-9**50)",
        "x**2 + x*exp(-999)/9**90",
        "x**7 + 0*exp(9**50)",
        "x**7 + exp(999) - exp(999)",
        "x**2 + x/9**90",
        "x**2 + x*(pi - 3.14159265358979)**3",
    ],
)
def test_wrong_antiderivatives_are_not_taken_for_right(answer: str) -> None:
    assert is_antiderivative("x**2", "2*x", "x")
    assert not is_antiderivative(answer, "2*x", "x")


def test_sizes() -> None:
    for small in ("x**99*y**99", "9**99", "(x + y)**99", "-1*x/2", "+".join(["x*y"] * 700)):
        assert is_small(small), small[:30]
    for large in (
        "(9**99)**2",
        "x + exp(exp(x))",
        "((x + 9)**99)**9*8**99",
        "x y",
        "x.y",
        "f(x)(x)",
    ):
        assert not is_small(large), large
