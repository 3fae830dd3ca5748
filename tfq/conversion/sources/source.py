# SPDX-License-Identifier: Apache-2.0
"""What a conversion starts from: a functional model, a subclassed model, or a SavedModel without a Keras config."""

from collections.abc import Sequence
from typing import Protocol

from tfq.config.input_shapes import InputShape
from tfq.conversion.sources.inputs import ExampleShapes, FixedInput, SourceInput, fixed_inputs
from tfq.conversion.sources.keras_models import FunctionalModel
from tfq.conversion.sources.saved_model import SavedModelSource
from tfq.conversion.sources.subclassed import SubclassedModel, is_sequential, is_subclassed
from tfq.errors import InputError
from tfq.keras_bridge import SavedModel, model_kind
from tfq.typing import KerasModel, TensorFlowFunction


class Source(Protocol):
    """A model whose inference function can be traced.

    Attributes:
        is_keras: Whether it has Keras layers.
        model: The model, which must outlive its concrete function.
        inputs: Its inputs, as far as the model says what they are.
        layer_names: {name of a layer in the graph: the user's name}.
    """

    is_keras: bool
    inputs: tuple[SourceInput, ...]

    @property
    def model(self) -> KerasModel | SavedModel:
        """The model."""

    @property
    def layer_names(self) -> dict[str, str]:
        """The user's names of the layers by their names in the graph."""

    @property
    def variables(self) -> dict[str, list[object]]:
        """The TensorFlow variables of each layer; "" has those without a layer."""

    def arguments(self, tensors: Sequence[object]) -> tuple[list[object], dict[str, object]]:
        """Return the arguments of a call with these inputs: by position and by name."""

    def prepare(self, inputs: Sequence[FixedInput]) -> None:
        """Create what does not exist yet."""

    def function(self, inputs: Sequence[FixedInput]) -> tuple[TensorFlowFunction, tuple[str, ...]]:
        """Return the concrete function of the inference with these inputs, and the names of its outputs."""


def source_of(model: object, signature: str, written: Sequence[InputShape], examples: ExampleShapes) -> Source:
    """Return the source of a model.

    Args:
        model: A model of either Keras, or an SavedModel.
        signature: The signature of an SavedModel; "" is its only one or serving_default.
        written: The parsed `conversion.input_shapes`.
        examples: The representative data.

    Raises:
        InputError: `model` is something else, has no such signature, or has inputs of which nothing is known.
    """
    if isinstance(model, SavedModel):
        return SavedModelSource(model, signature)
    model_kind(model)
    if signature:
        raise InputError(
            f"conversion.signature={signature}: only a SavedModel or a .tflite has signatures, got a Keras model. "
            "Remove the setting",
            field="conversion.signature",
            expected="",
            got=signature,
        )
    if is_subclassed(model):
        subclassed = SubclassedModel(model, written, examples)
        if not is_sequential(model):
            return subclassed
        # A Sequential model that was never built has symbolic inputs after it was built for any batch size.
        subclassed.build_sequential(fixed_inputs(subclassed.inputs, 0, written, examples))
        if is_subclassed(model):
            return subclassed
    return FunctionalModel(model)
