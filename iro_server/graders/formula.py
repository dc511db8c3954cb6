"""``calculate_output``: arithmetic over named rewards, walked as a syntax tree and never executed as code."""

from __future__ import annotations

import ast
import math
import operator
import unicodedata
from collections.abc import Callable, Collection, Mapping

from iro_server.graders.syntax import parse_expression

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,  # an error, not a complex number, for a root of a negative
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_MANY = {"min", "max"}  # functions of two or more arguments; the others take one
MAX_LENGTH = 1000


def parse_formula(formula: str, names: Collection[str]) -> ast.expr:
    """The formula's tree: numbers, ``names``, + - * / ^ (power), and min max abs floor ceil exp sqrt log.

    Python's parser composes identifiers (NFKC); the tree has each name as it is in ``names``. Raises ValueError for
    anything else.
    """
    by_identifier = {as_identifier(name): name for name in names}
    if len(formula) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    try:
        tree = parse_expression(formula.replace("^", "**").strip())
        _check(tree, by_identifier)
    except SyntaxError as error:
        raise ValueError(f"not a formula: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise ValueError("nested too deeply") from None
    return tree


def as_identifier(name: str) -> str:
    """The name as Python's parser reads it."""
    return unicodedata.normalize("NFKC", name)


def _check(node: ast.expr, names: Mapping[str, str]) -> None:
    """Raise ValueError for what is not allowed, and put names in place of identifiers. ``names``: by identifier."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            pass
        case ast.Name(id=name):
            if name not in names:
                raise ValueError(f"{name!r} is not one of the graders {', '.join(sorted(names.values()))}")
            node.id = names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, names)
            _check(right, names)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            _check(operand, names)
        case ast.Call(func=ast.Name(id=function), args=args, keywords=[]) if function in _FUNCTIONS:
            if (len(args) < 2) if function in _MANY else (len(args) != 1):
                raise ValueError(f"{function} takes {'two or more arguments' if function in _MANY else 'one argument'}")
            for arg in args:
                _check(arg, names)
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not allowed; use + - * / ^ and {', '.join(_FUNCTIONS)}")


def evaluate(node: ast.expr, rewards: Mapping[str, float]) -> float:
    """The value of a tree from ``parse_formula``. Raises ArithmeticError or ValueError where it has none."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return rewards[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](evaluate(left, rewards), evaluate(right, rewards))
        case ast.UnaryOp(op=sign, operand=operand):
            return _UNARY[type(sign)](evaluate(operand, rewards))
        case ast.Call(func=ast.Name(id=function), args=args):
            return float(_FUNCTIONS[function](*(evaluate(arg, rewards) for arg in args)))
    raise AssertionError(f"parse_formula let {ast.dump(node)} through")
