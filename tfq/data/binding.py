# SPDX-License-Identifier: Apache-2.0
"""Which array goes to which input of the model, and whether its shape is the input's."""

from collections.abc import Mapping, Sequence

from numpy.typing import NDArray

from tfq.errors import InputError, did_you_mean

UNNAMED = "x"


def shape_fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether an array of `shape` is one of those `wanted`, where None and -1 stand for any size."""
    return len(shape) == len(wanted) and all(
        size in (None, -1) or size == came for came, size in zip(shape, wanted, strict=True)
    )


def bind_inputs(inputs: Mapping[str, NDArray], names: Sequence[str]) -> list[NDArray]:
    """The arrays of `inputs` in the order of the model's input `names`.

    The one unnamed array "x" goes to the one input of a model, whatever its name. Otherwise names must match: exactly,
    or but for what TensorFlow puts around them in a flatbuffer (`serving_default_image:0` is `image`).
    Raises InputError on an input without an array, an array without an input, and "x" for several inputs.
    """
    if len(names) == 1 and set(inputs) == {UNNAMED}:
        return [inputs[UNNAMED]]
    if len(names) > 1 and set(inputs) == {UNNAMED}:
        raise InputError(
            f"the data has one unnamed input, the model has {len(names)} ({', '.join(names)}): "
            f"name the arrays: in an .npz as x_test.{_plain(names[0])}, in a dict as {_plain(names[0])!r}"
        )
    if set(inputs) == set(names):
        return [inputs[name] for name in names]
    by_plain_name = {_plain(name): array for name, array in inputs.items()}
    wanted = [_plain(name) for name in names]
    surplus = [name for name in by_plain_name if name not in wanted]
    missing = [name for name in wanted if name not in by_plain_name]
    if missing:
        raise InputError(
            f"no array for the model's input {missing[0]!r}: the model has {', '.join(wanted)}, "
            f"the data {', '.join(by_plain_name)}: {did_you_mean(missing[0], surplus or by_plain_name)}"
        )
    if surplus:
        raise InputError(f"the data's {surplus[0]!r} is no input of the model: {did_you_mean(surplus[0], wanted)}")
    if len(set(wanted)) < len(wanted) or len(by_plain_name) < len(inputs):
        raise InputError(f"inputs {', '.join(inputs)} cannot be told apart for the model's {', '.join(names)}")
    return [by_plain_name[name] for name in wanted]


def _plain(name: str) -> str:
    """An input's name without the signature's prefix and the tensor's output number."""
    name = name.removeprefix("serving_default_")
    head, colon, tail = name.rpartition(":")
    return head if colon and tail.isdigit() else name
