# SPDX-License-Identifier: Apache-2.0
"""Shapes and dtypes of a model's inputs as users write them: `image=32x32x3`, `ids=128:int32`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tfq.errors import InputError

FIELD = "conversion.input_shapes"
DTYPES = ("float32", "int32", "int64", "uint8", "int8", "int16", "bool")
SCALAR = "scalar"
_EXAMPLES = "NAME=SIZES, such as image=32x32x3, or NAME=SIZES:DTYPE, such as ids=128:int32"
_ITEM = re.compile(rf"(?:(?P<name>.+)=)?(?P<sizes>{SCALAR}|\d{{1,10}}(?:x\d{{1,10}})*)(?::(?P<dtype>\w+))?")
_LARGEST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """The shape of one example of an input, without the batch dimension.

    Attributes:
        name: The name of the input; "" for the only input of a model.
        sizes: The sizes of its dimensions; empty for one number per example.
        dtype: Its dtype; "" if the model or the data determine it.
    """

    name: str
    sizes: tuple[int, ...]
    dtype: str = ""


def parse_input_shapes(items: Iterable[str]) -> tuple[InputShape, ...]:
    """Return the parsed items of `conversion.input_shapes`.

    Raises:
        InputError: An item is malformed, or two items have the same name.
    """
    shapes = tuple(_parsed(item) for item in items)
    names = [shape.name for shape in shapes]
    for name in names:
        if name and names.count(name) > 1:
            raise InputError(
                f"{FIELD} has two shapes for the input {name!r}. Remove one of them",
                field=FIELD,
                expected="one shape for each input",
                got=name,
            )
    if any(names) and not all(names):
        raise InputError(
            f"{FIELD}: some items have a name and others have none. Expected {_EXAMPLES}",
            field=FIELD,
            expected="a name in each item",
            got=tuple(items),
        )
    return shapes


def _parsed(item: str) -> InputShape:
    match = _ITEM.fullmatch(item.strip())
    dtype = (match["dtype"] or "") if match else ""
    sizes = () if match is None or match["sizes"] == SCALAR else tuple(map(int, match["sizes"].split("x")))
    if match is None or any(not 0 < size <= _LARGEST for size in sizes):
        raise InputError(
            f"{FIELD}: {item!r} is not the shape of an input. Expected {_EXAMPLES}. The sizes are those of one "
            f"example, without the batch; {SCALAR} is a single number",
            field=FIELD,
            expected=_EXAMPLES,
            got=item,
        )
    if dtype and dtype not in DTYPES:
        raise InputError(
            f"{FIELD}: {item!r} has the dtype {dtype!r}, expected one of {', '.join(DTYPES)}",
            field=FIELD,
            expected=DTYPES,
            got=dtype,
        )
    return InputShape(name=(match["name"] or "").strip(), sizes=sizes, dtype=dtype)
