"""
Mutation testing: change one thing in a module, run its tests, and report every change that no test notices.

::

    python dev/mutate.py [MODULE ...] [--sample 30] [--seed 1] [--jobs 2]

``mutation.toml`` beside this file names the tests of each module, and the mutants that were examined and found to
behave like the original (equivalent), which do not count. A sample depends on the seed and on the mutants themselves,
so most of it stays the same when the module changes. Exits with 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "airflow_provider_imagen"
SETTINGS = Path(__file__).with_name("mutation.toml")
PYTEST = ("-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--no-header")

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,), ast.BitOr: (ast.BitAnd,), ast.BitAnd: (ast.BitOr,),
}  # fmt: skip
"""What an operator may become: comparisons move their boundary or turn around."""

UNTOUCHED_FIELDS = {"annotation", "returns", "decorator_list", "bases", "keywords", "type_params", "pattern"}
UNTOUCHED = (ast.Import, ast.ImportFrom, ast.JoinedStr)


class Mutant(NamedTuple):
    """One change of a module, described by the changed statement before and after."""

    line: int
    scope: str
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.scope}: {self.before} -> {self.after}"


def mutants(source: str) -> Iterator[Mutant]:
    """Yield all mutants of a module; constants, imports, messages, log calls and annotations stay as they are."""
    tree = ast.parse(source)
    for definition in tree.body:
        if isinstance(definition, (ast.FunctionDef, ast.ClassDef)) and not _is_protocol(definition):
            for line, scope, before, after in _walk(definition, definition.name, definition):
                yield Mutant(line, scope, before, after, ast.unparse(tree))


def _is_protocol(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases)


def _walk(parent: ast.AST, scope: str, statement: ast.AST) -> Iterator[tuple[int, str, str, str]]:
    """Make each change below a node in turn, yield its description while it is in place, and undo it."""
    for name, value in ast.iter_fields(parent):
        if name in UNTOUCHED_FIELDS and not (name == "keywords" and isinstance(parent, ast.Call)):
            continue
        nodes = value if isinstance(value, list) else [value]
        for index, node in enumerate(nodes):
            if not isinstance(node, ast.AST) or isinstance(node, UNTOUCHED) or _is_message(node):
                continue
            inner = node if isinstance(node, ast.stmt) else statement
            before = _header(inner)
            for new in _replacements(node, parent):
                nodes[index] = new
                if not isinstance(value, list):
                    setattr(parent, name, new)
                shown = new if isinstance(node, ast.stmt) else inner
                yield inner.lineno, scope, before, _header(shown)  # type: ignore[attr-defined]
            nodes[index] = node
            if not isinstance(value, list):
                setattr(parent, name, node)
            is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if not isinstance(node, ast.Raise):
                yield from _walk(node, f"{scope}.{node.name}" if is_definition else scope, inner)  # type: ignore[attr-defined]


def _is_message(node: ast.AST) -> bool:
    """Return whether a node only produces text for people: a docstring, a log call, or the arguments of an error."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    call = node.value if isinstance(node, ast.Expr) else node
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    return name.startswith("log.") or (name.endswith("Error") and not isinstance(node, ast.Expr))


def _header(statement: ast.AST) -> str:
    return ast.unparse(statement).partition("\n")[0]


def _replacements(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node may be replaced with."""
    is_test = isinstance(parent, (ast.If, ast.IfExp)) and node is parent.test
    if is_test and not isinstance(node, (ast.Compare, ast.UnaryOp)):  # these are turned around by their operators
        yield ast.UnaryOp(ast.Not(), parent.test)  # type: ignore[attr-defined]
    match node:
        case ast.cmpop() | ast.boolop() | ast.operator():
            yield from (new() for new in OPERATORS.get(type(node), ()))
        case ast.BoolOp(values=values):
            for left_out in range(len(values)):
                rest = [value for index, value in enumerate(values) if index != left_out]
                yield ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value) if not isinstance(parent, ast.While):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            yield ast.Constant(value + 1 if value != 1 else 0)
        case ast.Constant(value=str() as value) if " " not in value and not isinstance(parent, ast.keyword):
            yield ast.Constant(f"{value}x")
        case ast.Return(value=ast.AST() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


class Copies:
    """Copies of the project, one for each test run at a time, in which modules are replaced by mutants."""

    def __init__(self, folder: Path, count: int) -> None:
        self._free: Queue[Path] = Queue()
        for number in range(count):
            copy = folder / str(number)
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis"))
            compileall.compile_dir(copy / PACKAGE, quiet=2)
            self._free.put(copy)

    def passes(self, module: str, source: str, tests: list[str], *, timeout_seconds: float) -> bool:
        """Return whether tests pass, in time, with this source in place of a module's."""
        copy = self._free.get()
        target = copy / PACKAGE / module
        original = target.read_text()
        try:
            target.write_text(source)
            for stale in target.parent.glob(f"__pycache__/{target.stem}.*"):
                stale.unlink()
            environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
            command = [sys.executable, *PYTEST, *tests]
            with subprocess.Popen(  # noqa: S603 - the tests of this project
                command,
                cwd=copy,
                env=environment,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as run:
                try:
                    return run.wait(timeout_seconds) == 0
                except subprocess.TimeoutExpired:
                    return False
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(run.pid, signal.SIGKILL)
        finally:
            target.write_text(original)
            self._free.put(copy)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 1 if a mutant survived, 2 if the tests fail without any mutant."""
    settings = tomllib.loads(SETTINGS.read_text())
    parser = argparse.ArgumentParser(description="Report changes of the code that no test notices.")
    parser.add_argument("modules", nargs="*", help=f"paths below {PACKAGE}; default: all in {SETTINGS.name}")
    parser.add_argument("--sample", type=int, default=30, help="mutants per module (%(default)s)")
    parser.add_argument("--seed", default="1", help="selects the sample (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="test runs at a time (%(default)s)")
    arguments = parser.parse_args(argv)
    is_perfect = True
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        copies = Copies(Path(folder), arguments.jobs)
        for module in arguments.modules or settings["tests"]:
            source, tests = (ROOT / PACKAGE / module).read_text(), settings["tests"][module]
            equivalent = settings.get("equivalent", {}).get(module, {})
            unique = {each.source: each for each in mutants(source)}.values()
            ranked = sorted(unique, key=lambda each: hashlib.sha256(f"{arguments.seed} {each}".encode()).digest())
            sample = ranked[: arguments.sample]
            counted = [each for each in sample if str(each) not in equivalent]
            began = time.monotonic()
            if not copies.passes(module, ast.unparse(ast.parse(source)), tests, timeout_seconds=600):
                print(f"{module}: its tests fail without any mutant")
                return 2
            limit = 10 + 3 * (time.monotonic() - began)
            runs = [pool.submit(copies.passes, module, each.source, tests, timeout_seconds=limit) for each in counted]
            survivors = [each for each, run in zip(counted, runs, strict=True) if run.result()]
            killed = len(counted) - len(survivors)
            print(
                f"{module}: {killed} of {len(counted)} killed ({killed / max(len(counted), 1):.0%}), "
                f"{len(sample) - len(counted)} equivalent, {len(unique)} possible, {time.monotonic() - began:.0f} s",
                flush=True,
            )
            for stale in equivalent.keys() - {str(each) for each in unique}:
                print(f"  listed as equivalent, but no longer a mutant: {stale}")
            for each in sorted(survivors):
                print(f"  {PACKAGE}/{module}:{each.line}\n    {each}", flush=True)
            is_perfect = is_perfect and not survivors
    return 0 if is_perfect else 1


if __name__ == "__main__":
    raise SystemExit(main())
