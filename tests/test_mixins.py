"""The graph that imports do not show: what a part of the model class reads of another."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi._base import MADE_ANEW, STATE, ModelBase

MIXINS = [kind for kind in CFMVC.__mro__ if kind.__module__.startswith("cfmvc_scvi.")]


def own_tree(kind: type) -> ast.ClassDef:
    return ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]


def own_attributes(kind: type) -> Iterator[tuple[str, bool]]:
    """Attributes of ``self`` that the methods of a class name, and whether each is set there."""
    for node in ast.walk(own_tree(kind)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr, isinstance(node.ctx, ast.Store)


def declared(kind: type) -> set[str]:
    """Names that a class or one of its bases defines, annotates or sets."""
    names = set(dir(kind))
    for base in kind.__mro__:
        names |= set(vars(base).get("__annotations__", {}))
        if base.__module__.startswith("cfmvc_scvi."):
            names |= {name for name, is_set in own_attributes(base) if is_set}
        elif base is not object:  # scvi-tools' own bases set theirs in __init__
            names |= set(vars(base).get("__init__", object.__init__).__code__.co_names) if has_code(base) else set()
    return names


def has_code(kind: type) -> bool:
    return hasattr(vars(kind).get("__init__"), "__code__")


def undeclared_reads() -> list[str]:
    """Every attribute that a mixin reads and that neither it nor its bases declare."""
    return sorted(
        {f"{kind.__name__}.{name}" for kind in MIXINS for name, _ in own_attributes(kind) if name not in declared(kind)}
    )


def test_every_attribute_is_declared():
    assert undeclared_reads() == []


def test_a_missing_declaration_is_found():
    class Part(ModelBase):
        """A part that reads what it does not declare."""

        def method(self):
            return self.vocabulary, self.not_there

    reads = {name for name, _ in own_attributes(Part)}
    assert reads - declared(Part) == {"not_there"}


def test_no_base_calls_its_child():
    """A base reads nothing that only a subclass defines; so mixins that need each other cannot form a circle."""
    for kind in MIXINS:
        below = {name for child in MIXINS if issubclass(child, kind) and child is not kind for name in vars(child)}
        needed = {name for name, _ in own_attributes(kind)} & below
        assert {name for name in needed if name not in declared(kind)} == set(), kind


@pytest.mark.parametrize("kind", [k for k in MIXINS if k not in (CFMVC, ModelBase)], ids=lambda k: k.__name__)
def test_mixins_say_what_they_rely_on(kind):
    assert "Relies on" in kind.__doc__


def test_state_is_one_list():
    assert set(STATE) <= set(ModelBase.__annotations__)
    assert all(set(names) <= {*STATE, "is_trained_"} for names in MADE_ANEW.values())
