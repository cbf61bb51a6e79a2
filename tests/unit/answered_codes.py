"""Which error codes a service can answer, read from its source: what its app reaches by name, and raises there.

    create_app ──► functions and classes that it names, theirs in turn, through the imports of both packages
                     └─► InvalidEventError("code", …)   InvalidRangeError("code", …)
                         ProblemError(status, "code", …)   problem(status, "code", …)

What is reached through a port is not followed: adapters raise no codes, only errors that metering/web.py gives one.
A code that is no constant must be one of COMPUTED, or an argument that the callers of its function give.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metering.errors import InvalidEventError
from metering.web import _CODES, event_status

ROOT = Path(__file__).resolve().parents[2]
COMPUTED: Mapping[str, tuple[str, ...]] = {
    "error.code": (),  # it is found where it is raised
    "self._setup_code": (),  # what setup_code gave
    "_CODES.get(status, 'http_error')": (),  # those of _CODES; nothing raises another status
    "f'invalid_{field}'": ("invalid_tenant_id", "invalid_metric"),
    "f'{error.kind}_missing'": ("RESOURCE_missing",),
}

Name = tuple[str, str]
"""A module, and a name at its top."""


class Source:
    """The modules of a service and of metering."""

    def __init__(self, service: str) -> None:
        self.definitions: dict[Name, ast.stmt] = {}
        self._imports: dict[Name, Name] = {}
        for file in sorted([*(ROOT / service).glob("*.py"), *(ROOT / "metering").glob("*.py")]):
            module = f"{file.parent.name}.{file.stem}"
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in tree.body:
                self.definitions |= {(module, name): node for name in _names(node)}
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {service, "metering"}:
                    self._imports |= {
                        (module, alias.asname or alias.name): (str(node.module), alias.name) for alias in node.names
                    }

    def reached_from(self, root: Name) -> list[tuple[str, ast.stmt]]:
        """Return what is defined at the top of modules and can be reached, with its module."""
        found: dict[Name, ast.stmt] = {}
        waiting = [root]
        while waiting:
            name = waiting.pop()
            name = self._imports.get(name, name)
            if name in found or name not in self.definitions:
                continue
            found[name] = self.definitions[name]
            waiting += [(name[0], used) for used in _used(found[name])]
        return [(module, node) for (module, _), node in found.items()]

    def constants(self, module: str, code: ast.expr | None) -> list[str]:
        """Return what a code can be that stands in `module`."""
        if isinstance(code, ast.Constant):
            return [str(code.value)]
        if isinstance(code, ast.BoolOp):
            return [each for value in code.values for each in self.constants(module, value)]
        if isinstance(code, ast.Call) and isinstance(code.func, ast.Name):
            name = self._imports.get((module, code.func.id), (module, code.func.id))
            returns = [node for node in ast.walk(self.definitions[name]) if isinstance(node, ast.Return)]
            return [each for node in returns for each in self.constants(name[0], node.value)]
        text = ast.unparse(code) if code else "None"
        assert text in COMPUTED, f"{module} has a code that is no constant: {text}; say in COMPUTED what it can be"
        return list(COMPUTED[text])


@dataclass(frozen=True)
class Raiser:
    """What makes an error: where the code stands among its arguments, and the status, where that is always the same."""

    position: int
    status: int | None = None


def answered_codes(service: str, resource: str) -> set[tuple[int, str]]:
    """Return the status and code of every error that the app of `service` can answer.

    resource: what it needs, for the code of its being missing.
    """
    source = Source(service)
    nodes = source.reached_from((f"{service}.app", "create_app"))
    raisers = {
        "InvalidEventError": Raiser(0),
        "InvalidRangeError": Raiser(0, 400),
        "ProblemError": Raiser(1),
        "problem": Raiser(1),
    }
    found: set[tuple[int, str]] = set(_CODES.items())
    known = 0
    while len(raisers) > known:  # a function that takes a code and passes it on is found by the round before
        known = len(raisers)
        for module, node in nodes:
            for function, call in _calls(node, dict(raisers)):
                raiser = raisers[_called(call)]
                code = _code_of(call, raiser)
                parameters = [each.arg for each in function.args.args if each.arg != "self"] if function else []
                status = _constant_status(call) or raiser.status
                if function is not None and isinstance(code, ast.Name) and code.id in parameters:
                    raisers.setdefault(function.name, Raiser(parameters.index(code.id), status))
                    continue
                codes = [each.replace("RESOURCE", resource) for each in source.constants(module, code)]
                found |= {(status or event_status(InvalidEventError(each, "")), each) for each in codes}
    return found


def _code_of(call: ast.Call, raiser: Raiser) -> ast.expr:
    by_name = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    return by_name[0] if by_name else call.args[raiser.position]


def _constant_status(call: ast.Call) -> int | None:
    first = call.args[0] if call.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, int) else None


def _calls(node: ast.AST, raisers: Collection[str]) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    """Yield the calls of raisers below `node`, each with the innermost function around it."""

    def inside(at: ast.AST, function: ast.FunctionDef | None) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
        if isinstance(at, ast.FunctionDef):
            function = at
        if isinstance(at, ast.Call) and _called(at) in raisers:
            yield function, at
        for child in ast.iter_child_nodes(at):
            yield from inside(child, function)

    return inside(node, None)


def _called(call: ast.Call) -> str:
    function = call.func
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _used(node: ast.AST) -> Iterator[str]:
    """Yield the names that are used below `node`, those of annotations left out."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _used(child)
    if isinstance(node, ast.Name):
        yield node.id
