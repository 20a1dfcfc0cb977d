"""Every public name says what it is, what it takes, what it refuses, and shows how it is used."""

import ast
import inspect
import re
import textwrap

import pytest

import adabatch_jax as ab

PUBLIC = {f"ab.{name}": getattr(ab, name) for name in ab.__all__} | {
    f"ab.{room.__name__.rpartition('.')[2]}.{name}": getattr(room, name)
    for room in (ab.cluster, ab.models)
    for name in room.__all__
}
CALLED = [name for name, thing in PUBLIC.items() if callable(thing)]
# Classes that are not called by users, and what makes them.
MAKERS = {"ab.CompiledAhead": ab.compile_ahead, "ab.Rebatched": ab.rebatch}


def text_of(thing):
    return inspect.cleandoc(thing.__doc__ or "")


def raises(function):
    """Whether the body of a function has a `raise` of its own, outside of what is nested in it."""
    todo = list(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Raise):
            return True
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))
    return False


def members(cls):
    """What a class of ours has for its users: methods and properties that it defines itself."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


@pytest.mark.parametrize("name", PUBLIC)
def test_it_says_what_it_is_and_shows_how_it_is_used(name):
    text = text_of(PUBLIC[name])
    assert text.partition("\n")[0].rstrip(":").endswith((".", ")")), "a first sentence"
    assert ">>>" in text, "an example of its own"


@pytest.mark.parametrize("name", PUBLIC)
def test_it_can_be_rendered(name):
    thing = PUBLIC[name]
    for told in (
        [thing, *(member for _, member in members(thing))] if inspect.isclass(thing) else [thing]
    ):
        prose = re.sub(r"`[^`]*`|^ *(>>>|\.\.\.) .*$", "", text_of(told), flags=re.MULTILINE)
        assert "**" not in prose, "two stars make bold what stands between them"


@pytest.mark.parametrize("name", CALLED)
def test_it_says_what_it_takes(name):
    thing = PUBLIC[name]
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return
    text = text_of(MAKERS.get(name, thing))
    for argument in inspect.signature(thing).parameters:
        if argument not in ("args", "kwargs") and not argument.startswith("_"):
            assert argument in text, f"`{argument}` isn't told"


@pytest.mark.parametrize("name", CALLED)
def test_it_says_what_it_refuses(name):
    thing = PUBLIC[name]
    if inspect.isfunction(thing):
        assert not raises(thing) or "Raises:" in text_of(thing)
        return
    for member, function in members(thing):
        assert text_of(function), f"`{member}` has no docstring"
        told = text_of(function)
        assert not raises(function) or "raise" in told.lower(), f"`{member}` doesn't tell an error"
