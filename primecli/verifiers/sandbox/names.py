"""Finds the names that test code uses, and who defines each: the tests, Python, or the program."""

from __future__ import annotations

import ast
import builtins
import sys

ALIASES = {"np": "numpy", "pd": "pandas"}  # names under which everybody imports these modules


def prompt_helpers(prompt: str | None, entry_point: str) -> list[ast.stmt]:
    """The imports and definitions in a prompt, without the function that it asks for.

    >>> [type(node).__name__ for node in prompt_helpers("import math\\ndef f(x):\\n    '''doc'''\\n", "f")]
    ['Import']
    """
    try:
        body = ast.parse(prompt or "").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []
    return [node for node in body if getattr(node, "name", None) != entry_point]


def defined_names(source: str) -> set[str]:
    """Names that a source binds anywhere, in any scope."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


def free_names(source: str) -> list[str]:
    """Names that a source uses and does not bind, in alphabetical order.

    >>> free_names("assert f(x) == [y for y in z]")
    ['f', 'x', 'z']
    """
    bound = defined_names(source)
    loads = [node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return sorted({name for name in loads if name not in bound})


def trusted_modules(source: str) -> dict[str, str]:
    """Names in tests that stand for modules, with the module: they are used only for their attributes.

    The tests get the real module, even where the program defines something of that name.

    >>> trusted_modules("assert math.isclose(f(1), 2) and string(1)")
    {'math': 'math'}
    """
    tree = ast.parse(source)
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    plain = {node.id for node in names if id(node) not in bases}
    modules = {name: ALIASES.get(name, name) for name in free_names(source) if name not in plain}
    return {n: m for n, m in modules.items() if m in sys.stdlib_module_names or m in ("numpy", "pandas")}


def program_names(source: str) -> list[str]:
    """Names that the tests expect the program to define: a builtin only if they use no other.

    >>> program_names("assert set(f(1)) == {2}"), program_names("assert sum(10, 15) == 6")
    (['f'], ['sum'])
    """
    modules = trusted_modules(source)
    names = [name for name in free_names(source) if name not in modules]
    not_builtin = [name for name in names if not hasattr(builtins, name)]
    if not_builtin:
        return not_builtin
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    return [name for name in names if name in called]
