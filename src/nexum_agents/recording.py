"""Values of the Agents SDK as JSON and back without loss: how a turn of the model, or a tool's result, is recorded.

    ModelResponse(output=[ResponseFunctionToolCall(call_id="c1", …)], usage=Usage(…), …)

    {"$": "agents:ModelResponse",
     "output": [{"$": "openai.types.responses:ResponseFunctionToolCall", "call_id": "c1", …}], "usage": {"$": …}, …}

JSON stands for itself. An object is its class under "$", then the fields that were set and what the provider sent
besides. Fields never set stay so: what was set is what the SDK sends back to the model. Nothing is validated on the way
back, so an answer that was not quite valid comes back as it was. What few objects have stands under four more keys:

    $set         which fields count as set, when it is not those that stand there
    $missing     fields that the object has lost
    $attributes  what was attached to it, such as a request id, and values of fields that do not count as set
    $private     a model's private attributes

A dict with a key "$" of its own is written {"$": {…}}.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import import_module
from typing import Any, NamedTuple

from pydantic import BaseModel

# Where the classes are that a record may name: data alone, so nothing runs to read a record but imports from here.
PACKAGES = ("agents", "openai.types", "mcp_types", "mcp.types", "litellm.types")

_MARKS = ("$", "$set", "$missing", "$attributes", "$private")
_SCALARS = frozenset({str, int, float, bool, type(None)})
_NUMBER_LIMIT = 10**4300  # Python reads ints of no more digits
_UNMADE = object()  # the default of a field whose objects must not share one
_SPLIT_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # which JSON would make one character


class Unrecordable(Exception):
    """A value that would not come back equal from JSON; its text names the type and where it stands."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.path: list[Any] = []  # names and indexes, the innermost first

    def __str__(self) -> str:
        steps = [f".{step}" if str(step).isidentifier() else f"[{step!r}]" for step in reversed(self.path)]
        where = "".join(steps).removeprefix(".")
        return f"{self.args[0]} (at {where})." if where else f"{self.args[0]}."


def to_recorded(value: Any) -> Any:
    """`value` as JSON: dict, list, str, int, float, bool and None only.

    Raises Unrecordable unless `from_recorded` makes an equal value of it: of the same types, with the same fields set.
    """
    kind = _full_name(type(value))
    try:
        recorded = _encode(value)
        if _is_same(value, _decode(recorded)):
            return recorded
    except RecursionError:
        raise Unrecordable(f"{kind} cannot be recorded, it is nested too deeply") from None
    raise Unrecordable(f"{kind} cannot be recorded, it does not come back as it is")


def from_recorded(recorded: Any) -> Any:
    """What `to_recorded` was given. A field that its class has got since has its default.

    Raises Unrecordable when this installation cannot make it: a class is gone, say, or it is no record of ours.
    """
    try:
        return _decode(recorded)
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise Unrecordable(f"the record is none that was made here: {error}") from error


def _encode(value: Any) -> Any:
    kind: Any = type(value)
    if kind is str:
        if value.isascii() or not _SPLIT_PAIR.search(value):
            return value
        raise Unrecordable("str with a surrogate pair in two halves cannot be recorded")
    if kind is int or kind is float:
        if abs(value) < _NUMBER_LIMIT:
            return value
        raise Unrecordable(f"{kind.__name__} that JSON has no number for cannot be recorded")
    if value is None or kind is bool:
        return value
    if kind is list:
        return list(_each(enumerate(value), _encode).values()) if value else []
    if kind is dict:
        encoded = _each(_checked(value).items(), _encode)
        return {"$": encoded} if "$" in encoded else encoded
    return _encode_object(value, _shape(kind))


def _encode_object(value: Any, shape: "_Shape") -> dict[str, Any]:
    defaults, state = shape.defaults, vars(value)
    set_names = value.__pydantic_fields_set__ if shape.is_model else defaults.keys()
    parts: dict[str, Any] = {"$": shape.name}
    attributes = {}
    for name, part in state.items():
        if name in defaults and name in set_names:
            parts[name] = part
        elif name not in defaults or part is not defaults[name]:  # by identity, for 1 equals True and 1.0
            attributes[name] = part
    if attributes:
        parts["$attributes"] = attributes
    if not defaults.keys() <= state.keys():
        parts["$missing"] = [name for name in defaults if name not in state]
    if shape.is_model:
        if value.__pydantic_private__ is not None:
            parts["$private"] = value.__pydantic_private__
        if extras := value.__pydantic_extra__:
            if clashes := extras.keys() & {*defaults, *_MARKS}:
                raise Unrecordable(f"{shape.name} with {min(clashes)!r} beside its fields cannot be recorded")
            parts |= _checked(extras)
        if set_names != parts.keys() - _MARKS:
            parts["$set"] = sorted(set_names)
    return _each(parts.items(), _encode)


def _decode(recorded: Any) -> Any:
    kind = type(recorded)
    if kind is list:
        return list(_each(enumerate(recorded), _decode).values())
    if kind is not dict:
        return recorded
    named = recorded.get("$", recorded)
    if type(named) is dict:
        return _each(named.items(), _decode)
    return _decode_object(_each(recorded.items(), _decode), _shape(_class_named(str(named))))


def _decode_object(parts: dict[str, Any], shape: "_Shape") -> Any:
    marks = {mark: parts.pop(mark) for mark in _MARKS if mark in parts}
    state, extras = shape.defaults.copy(), {}  # in the order of the fields, which is the order of the SDK's dumps
    for name, part in parts.items():
        if name in state:
            state[name] = part
        else:
            extras[name] = part
    if extras and not shape.takes_extras:
        raise Unrecordable(f"{shape.name} has no field {min(extras)!r} in this installation, though a record has one")
    state |= marks.get("$attributes", {})
    for name in marks.get("$missing", ()):
        state.pop(name, None)
    for name, make in shape.makes.items():
        if state.get(name) is _UNMADE:
            state[name] = make()
    made = object.__new__(shape.cls)
    if shape.is_model:
        made.__setstate__(
            {
                "__dict__": state,
                "__pydantic_fields_set__": set(marks.get("$set", parts)),
                "__pydantic_extra__": extras if shape.takes_extras else None,
                "__pydantic_private__": marks.get("$private"),
            }
        )
    else:
        vars(made).update(state)
    return made


class _Shape(NamedTuple):
    """What is to be known of a class. `defaults` has every field, in order; those that `makes` makes are _UNMADE."""

    cls: Any
    name: str
    is_model: bool
    takes_extras: bool
    defaults: dict[str, Any]
    makes: dict[str, Callable[[], Any]]


@cache
def _shape(cls: Any) -> _Shape:
    name, is_model = _name(cls), issubclass(cls, BaseModel)
    own = cls.__mro__[: cls.__mro__.index(BaseModel)] if is_model else cls.__mro__
    try:
        object.__new__(cls)  # a TypeError where it extends a built-in class, whose part would be lost
        has_more = any(vars(base).get("__slots__") for base in own)
    except TypeError:
        has_more = True
    if has_more:
        raise Unrecordable(f"{name} cannot be recorded, its values keep more than a __dict__")

    defaults: dict[str, Any] = {}
    makes: dict[str, Callable[[], Any]] = {}
    infos = vars(cls).get("__pydantic_fields__")  # a dataclass of pydantic's has them, too
    for key, info in infos.items() if infos is not None else ():
        if info.is_required():
            defaults[key] = None  # as openai has it in an answer that lacks the field
        elif info.default_factory is None and info.get_default() is info.default:
            defaults[key] = info.default
        else:
            defaults[key], makes[key] = _UNMADE, partial(info.get_default, call_default_factory=True)
    for field in dataclasses.fields(cls) if infos is None else ():
        defaults[field.name] = None if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name], makes[field.name] = _UNMADE, field.default_factory
    return _Shape(cls, name, is_model, is_model and cls.model_config.get("extra") == "allow", defaults, makes)


def _name(cls: Any) -> str:
    """The class as "module:qualname". The shortest module that has it: public, and still true if the class is moved."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    if not (_is_open(cls.__module__) and (issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls))):
        raise Unrecordable(f"{_full_name(cls)} cannot be recorded, only JSON and data classes of {', '.join(PACKAGES)}")
    if _class_named(name) is not cls:
        raise Unrecordable(f"{name} cannot be recorded, another class has its name")
    packages = cls.__module__.split(".")
    modules = [".".join(packages[:depth]) for depth in range(1, len(packages))]
    shorter = (m for m in modules if _is_open(m) and getattr(sys.modules[m], cls.__qualname__, None) is cls)
    return f"{next(shorter, cls.__module__)}:{cls.__qualname__}"


@cache
def _class_named(name: str) -> Any:
    """Raises Unrecordable."""
    module, _, qualname = name.partition(":")
    if not _is_open(module):
        raise Unrecordable(f"{name} cannot be made from a record, only data classes of {', '.join(PACKAGES)}")
    try:
        found: Any = _imported(module)
        for step in qualname.split("."):
            found = getattr(found, step)
            if not isinstance(found, type):
                raise Unrecordable(f"{name} cannot be made from a record, it is not a class")
    except (ImportError, AttributeError) as error:
        raise Unrecordable(f"{name} cannot be made here, though a record has one: {error}") from None
    return found


def _imported(module: str) -> Any:
    """litellm asks a web server for prices when it is imported, unless it is told to use those that it brings."""
    if module in sys.modules or not module.startswith("litellm"):
        return import_module(module)
    before = os.environ.get("LITELLM_LOCAL_MODEL_COST_MAP")
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    try:
        return import_module(module)
    finally:
        if before is None:
            del os.environ["LITELLM_LOCAL_MODEL_COST_MAP"]
        else:
            os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = before


def _is_open(module: str) -> bool:
    return module.startswith(tuple(f"{package}." for package in PACKAGES)) or module in PACKAGES


def _full_name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}".removeprefix("builtins:")


def _checked(parts: dict[Any, Any]) -> dict[str, Any]:
    """The dict, if its keys are ones that JSON gives back."""
    for key in parts:
        if type(key) is not str or (not key.isascii() and _SPLIT_PAIR.search(key)):
            raise Unrecordable(f"dict with the key {key!r} of {_full_name(type(key))} cannot be recorded")
    return parts


def _each(parts: Iterable[tuple[Any, Any]], turn: Callable[[Any], Any]) -> dict[Any, Any]:
    """Every part turned. An error learns which one it was."""
    turned, step = {}, None
    try:
        for step, part in parts:
            is_itself = part is None or (type(part) is str and part.isascii())  # as most are: a call is saved
            turned[step] = part if is_itself else turn(part)
    except Unrecordable as error:
        error.path.append(step)
        raise
    return turned


def _is_same(one: Any, other: Any) -> bool:
    """Whether they are equal in all their parts, of the same types, and with the same fields set."""
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is list:
        return len(one) == len(other) and all(map(_is_same, one, other))
    if kind is dict:
        if one.keys() != other.keys():
            return False
        for key, part in one.items():
            its = other[key]
            if part is not its and not _is_same(part, its):
                return False
        return True
    if kind in _SCALARS:
        return bool(one == other)
    if not _is_same(vars(one), vars(other)):
        return False
    return not isinstance(one, BaseModel) or (
        one.__pydantic_fields_set__ == other.__pydantic_fields_set__
        and _is_same(one.__pydantic_extra__ or {}, other.__pydantic_extra__ or {})
        and _is_same(one.__pydantic_private__, other.__pydantic_private__)
    )
