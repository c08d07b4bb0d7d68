"""A pickle reader that cannot run anything.

A pickle is a program for a stack machine; Python's own reader imports and calls what the program names. This one
reads the same instructions (`pickletools` lists them, and executes none) and knows none that imports or calls: a name
is looked up in a closed table, and what the table gives is a function of this package that makes plain data out of
plain data. A name that is not in the table ends the reading.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

from diffdistill.errors import CheckpointError

Maker = Callable[..., Any]


class Fillable:
    """Data that takes its content after it was made (the BUILD instruction)."""

    def fill(self, state: Any) -> None:
        raise NotImplementedError


class Refused(Exception):
    """The file needs something that the reader refuses to do; the message names it."""


class Name:
    """A name of the file that is in the table; itself data, until REDUCE or NEWOBJ ask for what it makes."""

    def __init__(self, text: str, make: Maker):
        self.text, self.make = text, make


PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "FLOAT", "BINFLOAT",
}  # fmt: skip
MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Keys of other kinds can cost without bound when they are hashed (a tuple of a tuple of ...), and none is needed.
KEYS = (str, bytes, int, float, bool, type(None))


MOST_STEPS = 3_000_000
"""Instructions of a file, pickles inside of it too: the largest snapshots have some hundred thousand."""


class _Steps:
    """How many instructions are left of the file that is being read; a pickle inside of it takes from the same."""

    left, depth = 0, 0


class PickleReader:
    """One pickle of a stream -> plain data.

    names: (module, name) -> maker; persistent: what a persistent id means (storages of `torch.save` files), or None.
    """

    def __init__(self, names: Mapping[tuple[str, str], Maker], persistent: Callable[[Any], Any] | None = None):
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def read(self, stream: IO[bytes]) -> Any:
        """The object, read from where the stream stands to the end of the pickle.

        Raises CheckpointError, one sentence, if the file is damaged or names what is not in the table.
        """
        self.stack, self.below, self.memo = [], [], {}
        _Steps.left = _Steps.left if _Steps.depth else MOST_STEPS
        _Steps.depth += 1
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                _Steps.left -= 1
                if _Steps.left < 0:
                    raise Refused(f"the pickle has more than {MOST_STEPS:,} instructions")
                self._step(opcode.name, argument)
            (value,) = self.stack
        except Refused as error:
            raise CheckpointError(f"{error}; nothing of the file was run, and it cannot be used") from None
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError) as error:
            raise CheckpointError(
                f"the pickle is damaged or cut short ({type(error).__name__}); fetch the file again"
            ) from None
        finally:
            _Steps.depth -= 1
        return value

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in PUSHED:
            stack.append(argument)
        elif opcode in MADE:
            stack.append(MADE[opcode]())
        elif opcode in TUPLES:
            count = TUPLES[opcode]
            if len(stack) < count:
                raise ValueError
            stack[-count:] = [tuple(stack[-count:])]
        elif opcode in ABOVE_MARK:
            self.stack = self.below.pop()
            ABOVE_MARK[opcode](self.stack, stack)
        elif opcode in self.handlers:
            self.handlers[opcode](self, argument)
        else:
            raise Refused(f"the pickle uses the instruction {opcode}, which no file of weights needs")

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        _kind(self.stack[-1], list).append(value)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(_kind(self.stack[-1], dict), [key, value])

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.below.pop()

    def _duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _remember(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def _recall(self, index: int) -> None:
        self.stack.append(self.memo[index])

    # ---- names, and what they make

    def _name(self, module: str, name: str) -> None:
        make = self.names.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if make is None:
            raise Refused(f"the pickle asks for '{shown(module)}.{shown(name)}', which no file of weights needs")
        self.stack.append(Name(f"{module}.{name}", make))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)

    def _make(self, _: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        if not isinstance(what, Name):
            raise Refused("the pickle calls something that is no name")
        self.stack.append(what.make(*_kind(arguments, tuple)))

    def _fill(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Fillable):
            target.fill(state)
        elif not isinstance(target, dict):  # attributes of a dict are dropped: only its items are data
            raise Refused("the pickle sets attributes of something that has none")

    def _persistent_id(self, text: str) -> None:
        raise Refused(f"the pickle refers to '{shown(text)}' outside of it")

    def _binary_persistent_id(self, _: Any) -> None:
        if self.persistent is None:
            raise Refused("the pickle refers to data outside of it")
        self.stack.append(self.persistent(self.stack.pop()))

    def _nothing(self, _: Any) -> None:
        pass

    handlers: Mapping[str, Callable[["PickleReader", Any], None]] = {
        "MARK": _mark, "APPEND": _append, "SETITEM": _setitem, "POP": _pop, "DUP": _duplicate,
        "PUT": _remember, "BINPUT": _remember, "LONG_BINPUT": _remember, "MEMOIZE": _remember,
        "GET": _recall, "BINGET": _recall, "LONG_BINGET": _recall, "GLOBAL": _global, "STACK_GLOBAL": _stack_global,
        "REDUCE": _make, "NEWOBJ": _make, "BUILD": _fill, "PERSID": _persistent_id,
        "BINPERSID": _binary_persistent_id, "PROTO": _nothing, "FRAME": _nothing, "STOP": _nothing,
    }  # fmt: skip


def _kind(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError
    return value


def _key(value: Any) -> Any:
    if not isinstance(value, KEYS):
        raise Refused(f"the pickle uses a {type(value).__name__} as a key")
    return value


def _put(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value
    return target


# What is done with the stack below the last mark and all that lies above it.
ABOVE_MARK: Mapping[str, Callable[[list[Any], list[Any]], Any]] = {
    "LIST": lambda stack, items: stack.append(items),
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "DICT": lambda stack, items: stack.append(_put({}, items)),
    "APPENDS": lambda stack, items: _kind(stack[-1], list).extend(items),
    "ADDITEMS": lambda stack, items: _kind(stack[-1], set).update(map(_key, items)),
    "SETITEMS": lambda stack, items: _put(_kind(stack[-1], dict), items),
    "POP_MARK": lambda stack, items: None,
}


def shown(value: Any) -> str:
    """Text of the file in a message: short, one line, printable."""
    text = value if isinstance(value, str) else type(value).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:60])
