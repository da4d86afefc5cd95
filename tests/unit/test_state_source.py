"""Applying is deterministic: what the source of `state` may not say.

Replicas agree on entries, never on results: a clock, a random number or the order of a set in
there would make them differ for good, and no test of one node would see it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

STATE = Path(__file__).parent.parent.parent / "swarmd" / "state"
EDGES = {"store.py", "anew.py"}
"""Files of the same room that apply nothing: they hold threads and files."""

MODULES = {
    "random", "secrets", "uuid", "time", "datetime", "os", "socket", "threading", "trio",
    "platform", "locale", "getpass", "tempfile", "subprocess", "pathlib", "glob",
}  # fmt: skip
CALLS = {"id", "hash", "input", "open", "globals", "locals", "vars", "object"}
SETS = {"set", "frozenset"}
IN_ORDER = {"list", "tuple", "iter", "enumerate", "next", "map", "filter", "zip", "reversed"}
SQL_CHANCE = re.compile(
    r"\b(random|randomblob|datetime|date|time|julianday|strftime|unixepoch|timediff"
    r"|sqlite_version|total_changes)\s*\(|\bCURRENT_(TIMESTAMP|TIME|DATE)\b",
    re.IGNORECASE,
)
EXISTS = re.compile(
    r"^\s*SELECT 1 FROM|FROM \(SELECT 1 FROM|LIMIT 0$|LIMIT 100000\)", re.IGNORECASE
)


def findings(source: str) -> list[str]:
    """What a replica would do otherwise than another, as far as the source shows it."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    sets = _names_of_sets(tree)
    found: list[str] = []
    for node in ast.walk(tree):
        for what in _wrong(node, parents, sets):
            found.append(f"{getattr(node, 'lineno', 0)}: {what}")
    return found


def _names_of_sets(tree: ast.AST) -> set[str]:
    """Variables and attributes that are said to be sets, or are made as such."""
    names = set()
    for node in ast.walk(tree):
        target: ast.expr | None = None
        if isinstance(node, ast.AnnAssign) and _is_set_type(node.annotation):
            target = node.target
        elif isinstance(node, ast.arg) and node.annotation and _is_set_type(node.annotation):
            names.add(node.arg)
        elif isinstance(node, ast.Assign) and _is_set(node.value, set()):
            target = node.targets[0]
        if isinstance(target, ast.Name):
            names.add(target.id)
        elif isinstance(target, ast.Attribute):
            names.add(target.attr)
    return names


def _is_set_type(node: ast.expr) -> bool:
    return ast.unparse(node).split("[")[0] in SETS


def _is_set(node: ast.expr, names: set[str]) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in SETS
        case ast.BinOp(left=left, op=ast.BitOr() | ast.BitAnd() | ast.Sub(), right=right):
            return any(_is_set(s, names) or _is_view(s) for s in (left, right))
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in names
    return False


def _is_view(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("keys", "items")
    )


def _wrong(
    node: ast.AST, parents: dict[ast.AST, ast.AST], sets: set[str]
) -> Iterator[str]:  # fmt: skip
    match node:
        case ast.Import(names=names):
            for name in names:
                if name.name.split(".")[0] in MODULES:
                    yield f"imports {name.name}"
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
            yield f"imports from {module}"
        case ast.For(iter=over) | ast.comprehension(iter=over) if _is_set(over, sets):
            if not isinstance(parents[node], ast.SetComp):
                yield f"goes through a set: {ast.unparse(over)}"
        case ast.Starred(value=value) if _is_set(value, sets):
            if not isinstance(parents[node], ast.Set):
                yield f"unpacks a set: {ast.unparse(value)}"
        case ast.Call(func=ast.Name(id=name), args=args):
            if name in CALLS:
                yield f"calls {name}()"
            if name in IN_ORDER and any(_is_set(a, sets) for a in args):
                yield f"takes a set in its order: {ast.unparse(node)}"
        case ast.Call(func=ast.Attribute(attr="join"), args=[what]) if _is_set(what, sets):
            yield f"joins a set: {ast.unparse(node)}"
        case ast.Call(func=ast.Attribute(value=value, attr="pop"), args=[]) if _is_set(value, sets):
            yield f"takes any of a set: {ast.unparse(node)}"
        case ast.Constant(value=str(text)) if not isinstance(parents.get(node), ast.JoinedStr):
            yield from _wrong_sql(text, node, parents)
        case ast.JoinedStr(values=values):
            parts = [v.value if isinstance(v, ast.Constant) else "?" for v in values]
            yield from _wrong_sql("".join(map(str, parts)), node, parents)


def _wrong_sql(text: str, node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[str]:
    if isinstance(parents.get(node), ast.Expr):
        return  # a docstring
    if chance := SQL_CHANCE.search(text):
        if re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE|DEFAULT|VALUES)\b", text):
            yield f"SQL asks for chance or a clock: {chance[0]}"
    if re.search(r"\bLIMIT\b", text) and not re.search(r"\bORDER BY\b", text):
        if not EXISTS.search(text) and not text.lstrip().startswith("LIMIT"):
            yield f"SQL takes some rows in no order: {text}"
    if re.search(r"\bgroup_concat\(", text, re.IGNORECASE):
        yield "SQL joins rows in no order"


def applied_files() -> list[Path]:
    return [p for p in sorted(STATE.rglob("*.py")) if p.name not in EDGES]


@pytest.mark.parametrize("path", applied_files(), ids=lambda p: str(p.relative_to(STATE)))
def test_nothing_in_the_source_depends_on_where_it_runs(path: Path) -> None:
    assert findings(path.read_text()) == []


@pytest.mark.parametrize("path", sorted((STATE / "rules").glob("*.py")), ids=lambda p: p.name)
def test_rows_that_rules_go_through_have_an_order(path: Path) -> None:
    """A row that is looked up is one; several come in the order of whatever index was used."""
    assert unordered(path.read_text()) == []


def unordered(source: str) -> list[str]:
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="execute"), args=[sql, *_]):
                text = ast.unparse(sql)
                if not re.match(r"f?['\"]\s*SELECT", text) or "ORDER BY" in text:
                    continue
                if re.search(r"SELECT count\(|WHERE id = \?", text):
                    continue  # one row, whatever the order
                parent = parents[node]
                if isinstance(parent, ast.Attribute) and parent.attr == "fetchone":
                    continue
                if isinstance(parent, ast.Call) and ast.unparse(parent.func) in ("dict", "sorted"):
                    continue
                found.append(f"{node.lineno}: {text[:80]}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import random", "from datetime import datetime", "import os.path", "import uuid as u",
        "for x in {1, 2}: pass", "for x in set(a): pass", "[x for x in frozenset(a)]",
        "for x in a.keys() & b.keys(): pass", "for x in set(a) - set(b): pass",
        "tuple(set(a))", "[*{1, 2}]", "','.join({x for x in a})", "next(iter(set(a)))",
        "def f(seen: set[int]):\n    return [x for x in seen]",
        "class A:\n    def f(self):\n        self.k: set[int] = g()\n        self.k.pop()",
        "k = {1, 2}\nfor x in k: pass", "hash(a)", "id(a)",
        "tx.execute('INSERT INTO t VALUES (random())')",
        "tx.execute(\"UPDATE t SET at = datetime('now')\")",
        "tx.execute('INSERT INTO t VALUES (CURRENT_TIMESTAMP)')",
        "tx.execute('SELECT id FROM t LIMIT ?', (n,))",
        "tx.execute(f'SELECT {columns} FROM t LIMIT 3')",
        "tx.execute('SELECT group_concat(id) FROM t')",
        "SQL = 'CREATE TABLE t(at TEXT DEFAULT CURRENT_TIMESTAMP)'",
    ],
)  # fmt: skip
def test_such_a_source_is_found(source: str) -> None:
    assert len(findings(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "for x in sorted({1, 2}): pass", "x in {1, 2}", "k: set[int] = set()\nk.add(1)",
        "{x for x in set(a)}", "len(set(a))", "for x in {1: 2}: pass", "sum({1, 2})",
        "tx.execute('SELECT id FROM t ORDER BY id LIMIT ?')",
        "tx.execute('SELECT 1 FROM t WHERE a = ? LIMIT 1').fetchone()",
        '"""Nothing random() about a LIMIT in words."""',
    ],
)  # fmt: skip
def test_such_a_source_is_fine(source: str) -> None:
    assert findings(source) == []


def test_unordered_rows_are_found() -> None:
    assert unordered("for a in tx.execute('SELECT id FROM t'): pass")
    assert unordered("rows = tx.execute(f'SELECT {x} FROM t').fetchall()")
    assert not unordered("tx.execute('SELECT id FROM t').fetchone()")
    assert not unordered("for a in tx.execute('SELECT id FROM t ORDER BY id'): pass")
