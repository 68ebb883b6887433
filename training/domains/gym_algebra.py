"""Expressions as answers to reasoning-gym's algebra tasks.

Some things sympy writes out when it reads them: ((9**99)**99)**99, exp(999999999*log(9)). And the
scorers of the integration tasks ask its `simplify` whether the answer's derivative less the
integrand is 0. How long that takes on what a model writes cannot be told: on
x*2 + cosh((18 - x)*atan(x)) it takes minutes. So here it is told by values: two expressions of a
bounded size that agree in hundreds of digits at points that nobody chose are the same.
"""

import ast
import functools
import math
import random
import string
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh"}
    | {"exp", "log", "ln", "sqrt"}
)

# Sizes that right answers stay well below. Terms: when multiplied out. Height: bits of the largest
# number that can come up.
MAX_CHARS = 1000
MAX_TERMS = 200
MAX_DEGREE = 100
MAX_HEIGHT = 500

NUM_POINTS = 4
# Values further from 1 than that could hide a difference. Those that are equal are so to many
# digits more, which the height of the numbers can take up.
MAX_POWER_OF_TEN = 150
_SPARE_DIGITS = 50


class _Size(NamedTuple):
    terms: int
    degree: int
    height: int


class _Jet(NamedTuple):
    """A value and the derivative there."""

    value: Any
    slope: Any


def is_small(expression: str) -> bool:
    """Whether `expression`, of Python's syntax, can be read without a number of more than
    MAX_HEIGHT bits or functions of functions."""
    try:
        return _size(_parsed(expression)).height <= MAX_HEIGHT
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return False


def is_antiderivative(answer: str, integrand: str, variable: str) -> bool:
    """Whether the derivative of `answer` is `integrand`, both of Python's syntax; False too where
    the answer has not the size of a right one. The points follow from the answer."""
    if len(answer) > MAX_CHARS:
        return False
    try:
        given, wanted = _parsed(answer), _parsed(integrand)
        size = _size(given)
        if size.terms > MAX_TERMS or size.degree > MAX_DEGREE or size.height > MAX_HEIGHT:
            return False
        digits = max(size.height, _size(wanted).height) + MAX_POWER_OF_TEN + _SPARE_DIGITS
        values = _Values(digits + MAX_POWER_OF_TEN)
        rng = random.Random(answer)
        for _ in range(NUM_POINTS):
            names = values.anywhere(rng)
            difference = (
                values.jet(given, variable, names).slope - values.jet(wanted, variable, names).value
            )
            if abs(difference) > values.context.mpf(10) ** -digits:
                return False
    # no expression, a division by 0, parentheses by the hundred, a value out of bounds
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return False
    return True


def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression.strip(), mode="eval").body


def _summands(node: ast.expr) -> list[tuple[int, ast.expr]]:
    """With their signs; of a long sum, which is nested as deep as it is long."""
    found = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        found.append((-1 if isinstance(node.op, ast.Sub) else 1, node.right))
        node = node.left
    return [(1, node), *reversed(found)]


def _called(node: ast.expr) -> tuple[str, ast.expr] | None:
    """A function and its argument, which E**x is too."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[argument]) if name in FUNCTIONS:
            return name, argument
        case ast.BinOp(left=ast.Name(id="E"), op=ast.Pow(), right=argument):
            return "exp", argument
    return None


def _exponent(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() as value):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub()):
            return -_exponent(node.operand)
        case ast.BinOp(op=ast.Div()):
            return _exponent(node.left) / _exponent(node.right)
    raise ValueError(f"{ast.unparse(node)!r} is no exponent")


def _size(node: ast.expr, *, in_function: bool = False) -> _Size:
    size = functools.partial(_size, in_function=in_function)
    called = _called(node)
    if called is not None:
        name, argument = called
        if name == "sqrt":
            return size(argument)
        # exp(999999999*log(9)), exp(exp(exp(99)))
        if in_function:
            raise ValueError("a function of a function")
        inner = _size(argument, in_function=True)
        return _Size(inner.terms, max(1, inner.degree), inner.height)
    match node:
        case ast.Constant(value=int() | float() as value):
            number = Fraction(str(value))
            return _Size(1, 0, max(number.numerator.bit_length(), number.denominator.bit_length()))
        case ast.Name(id=name) if len(name) == 1 or name == "pi":
            return _Size(1, 1, 1)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return size(node.operand)
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            sizes = [size(summand) for _, summand in _summands(node)]
            terms, degrees, heights = zip(*sizes, strict=True)
            return _Size(sum(terms), max(degrees), max(heights) + len(sizes).bit_length())
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            left, right = size(node.left), size(node.right)
            return _Size(
                left.terms * right.terms, left.degree + right.degree, left.height + right.height
            )
        case ast.BinOp(op=ast.Pow()):
            base, power = size(node.left), max(1, abs(_exponent(node.right).numerator))
            if base.height * power > MAX_HEIGHT or base.terms > MAX_TERMS:
                raise ValueError("a power is too large")
            terms = math.comb(base.terms + power - 1, power)
            return _Size(terms, base.degree * power, base.height * power)
    raise ValueError(f"{ast.unparse(node)!r} is no algebra")


class _Values:
    """Values to so many digits. Raises ValueError for those that are out of bounds."""

    def __init__(self, digits: int) -> None:
        from mpmath.ctx_mp import MPContext

        self.context = context = MPContext()
        context.dps = digits
        bound = context.mpf(10) ** MAX_POWER_OF_TEN
        self.bounds = (1 / bound, bound)
        # by a function's argument and value
        self.slopes: dict[str, Callable[[Any, Any], Any]] = {
            "sin": lambda u, _: context.cos(u),
            "cos": lambda u, _: -context.sin(u),
            "tan": lambda _, f: 1 + f**2,
            "sec": lambda u, f: f * context.tan(u),
            "csc": lambda u, f: -f * context.cot(u),
            "cot": lambda _, f: -1 - f**2,
            "asin": lambda u, _: 1 / context.sqrt(1 - u**2),
            "acos": lambda u, _: -1 / context.sqrt(1 - u**2),
            "atan": lambda u, _: 1 / (1 + u**2),
            "sinh": lambda u, _: context.cosh(u),
            "cosh": lambda u, _: context.sinh(u),
            "tanh": lambda _, f: 1 - f**2,
            "exp": lambda _, f: f,
            "log": lambda u, _: 1 / u,
            "ln": lambda u, _: 1 / u,
            "sqrt": lambda _, f: 1 / (2 * f),
        }

    def anywhere(self, rng: random.Random) -> dict[str, Any]:
        """Complex values of all names of one letter, but for E and I: what holds on one side of 0
        alone does not hold."""

        def part() -> float:
            return rng.choice((-1, 1)) * rng.uniform(0.05, 0.7)

        names = {letter: self.context.mpc(part(), part()) for letter in string.ascii_letters}
        return names | {"pi": self.context.pi, "E": self.context.e, "I": self.context.mpc(0, 1)}

    def jet(self, node: ast.expr, variable: str, names: dict[str, Any]) -> _Jet:
        jet = functools.partial(self.jet, variable=variable, names=names)
        called = _called(node)
        if called is not None:
            name, u = called[0], jet(called[1])
            value = getattr(self.context, name)(u.value)
            return self._bounded(value, self.slopes[name](u.value, value) * u.slope)
        match node:
            case ast.Constant(value=int() | float() as value):
                number = Fraction(str(value))
                return _Jet(self.context.mpf(number.numerator) / number.denominator, 0)
            case ast.Name(id=name):
                return _Jet(names[name], int(name == variable))
            case ast.UnaryOp():
                sign = -1 if isinstance(node.op, ast.USub) else 1
                inner = jet(node.operand)
                return _Jet(sign * inner.value, sign * inner.slope)
            case ast.BinOp(op=ast.Add() | ast.Sub()):
                parts = [(sign, jet(summand)) for sign, summand in _summands(node)]
                # what is left of values that cancel out may be as small as it likes
                return _Jet(
                    sum(sign * part.value for sign, part in parts),
                    sum(sign * part.slope for sign, part in parts),
                )
            case ast.BinOp(op=ast.Mult()):
                a, b = jet(node.left), jet(node.right)
                return self._bounded(a.value * b.value, a.slope * b.value + a.value * b.slope)
            case ast.BinOp(op=ast.Div()):
                a, b = jet(node.left), jet(node.right)
                value = a.value / b.value
                return self._bounded(value, (a.slope - value * b.slope) / b.value)
            case ast.BinOp(op=ast.Pow()):
                a, power = jet(node.left), _exponent(node.right)
                n = self.context.mpf(power.numerator) / power.denominator
                return self._bounded(a.value**n, n * a.value ** (n - 1) * a.slope)
        raise ValueError(f"{ast.unparse(node)!r} is no algebra")

    def _bounded(self, value: Any, slope: Any) -> _Jet:
        low, high = self.bounds
        for number in (value, slope):
            if number and not low < abs(number) < high:
                raise ValueError("a value is out of bounds")
        return _Jet(value, slope)
