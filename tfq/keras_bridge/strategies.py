# SPDX-License-Identifier: Apache-2.0
"""Run code in the tf.distribute strategy of a model, and combine values over the replicas of a training step.

A variable belongs to the strategy in whose scope it was created. Copies of a model, and variables that training adds,
must therefore be created in the scope of the model's strategy, or `compile` rejects them.

BatchNormalization of tf_keras has separate moving statistics on each replica. In the strategy's scope, they are read as
their mean, which is also what a saved file contains.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from tfq.errors import InputError, warn

F = TypeVar("F", bound=Callable[..., Any])


def strategy_of(model: Any) -> Any:
    """Return the tf.distribute strategy of a model of either Keras; None for the default strategy.

    The variables decide, because a model can be built outside of the scope from layers that were built inside.
    """
    for variable in _weights(model):
        strategy = getattr(getattr(variable, "_value", variable), "distribute_strategy", None)
        if strategy is not None:
            return strategy
    return getattr(model, "_distribution_strategy", None) or getattr(model, "_distribute_strategy", None)


def _weights(model: Any) -> Iterable[Any]:
    try:
        return getattr(model, "weights", None) or ()
    except ValueError:  # a Sequential of tf_keras that was never built
        return ()


@contextlib.contextmanager
def strategy_scope(model: Any) -> Iterator[None]:
    """Enter the scope of the model's strategy. Without one, the current strategy remains.

    Raises:
        InputError: The current strategy is another one than the model's.
    """
    strategy = strategy_of(model)
    if strategy is None:
        yield
        return
    import tensorflow as tf

    if tf.distribute.has_strategy():
        current = tf.distribute.get_strategy()
        if current is not strategy:
            raise InputError(
                f"{model.name!r} belongs to a {type(strategy).__name__}, but was passed in the scope of another "
                f"strategy ({type(current).__name__}): call tfq in the scope of the model's strategy, or outside of "
                "any scope",
                field="model",
                expected=type(strategy).__name__,
                got=type(current).__name__,
                limit="other-strategy",
            )
        yield
        return
    with strategy.scope():
        yield


def in_strategy(function: F) -> F:
    """Decorate a function so that it runs in the strategy of its first argument: a model, or an object that has one."""

    @functools.wraps(function)
    def in_scope(*args: Any, **kwargs: Any) -> Any:
        first: Any = args[0] if args else next(iter(kwargs.values()), None)
        with strategy_scope(first if hasattr(type(first), "weights") else getattr(first, "model", None)):
            return function(*args, **kwargs)

    return cast(F, in_scope)


@contextlib.contextmanager
def named_strategy(name: str) -> Iterator[int]:
    """Enter the strategy that a config names, "none" or "mirrored", and yield its number of replicas."""
    if name == "none":
        yield 1
        return
    strategy = _mirrored()
    if strategy.num_replicas_in_sync == 1:
        warn("strategy=mirrored has one replica, because TensorFlow sees one device: training is not faster")
    with strategy.scope():
        yield int(strategy.num_replicas_in_sync)


@functools.cache
def _mirrored() -> Any:
    """Return the MirroredStrategy of all devices; one object, because variables of two strategies cannot be mixed."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy()


def refuse_multi_worker(model: Any) -> None:
    """Raise InputError if a model belongs to a strategy of several workers, whose graphs wait for the other workers."""
    strategy = strategy_of(model)
    if strategy is not None and getattr(strategy.extended, "_num_workers", 1) > 1:
        raise InputError(
            f"{model.name!r} belongs to a MultiWorkerMirroredStrategy of several workers, in which a model cannot be "
            "converted: its graph waits for the other workers. Call model.save in every worker (only the chief's file "
            "is needed), and convert the chief's file in a new process",
            field="model",
            expected="a model without a strategy of several workers",
            got="MultiWorkerMirroredStrategy",
            limit="multi-worker",
        )


def num_replicas() -> int:
    """Return the number of replicas of the current strategy, 1 without a strategy."""
    import tensorflow as tf

    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def sum_over_replicas(value: Any) -> Any:
    """Return the sum of a tensor over all replicas, in a training step; without gradients."""
    import tensorflow as tf

    if num_replicas() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(value))


def extremes_over_replicas(low: Any, high: Any) -> tuple[Any, Any]:
    """Return the minimum of `low` and the maximum of `high`, scalars, over all replicas, in a training step.

    TensorFlow can only sum over replicas, so that each replica contributes a row of a matrix. The result is exact.
    """
    import tensorflow as tf

    replicas = num_replicas()
    if replicas == 1:
        return low, high
    is_own = tf.range(replicas) == tf.distribute.get_replica_context().replica_id_in_sync_group
    rows = sum_over_replicas(tf.where(is_own[:, None], tf.stack([low, high]), 0.0))
    return tf.reduce_min(rows[:, 0]), tf.reduce_max(rows[:, 1])


def synchronize(model: Any) -> None:
    """Give all replicas the same moving statistics: the mean, which is what a saved file would contain."""
    for variable in model.weights:
        if getattr(variable, "distribute_strategy", None) is not None and _is_separate(variable):
            variable.assign(variable.read_value())


def _is_separate(variable: Any) -> bool:
    """Check whether each replica has its own value, and reading the variable combines them."""
    import tensorflow as tf

    return bool(variable.synchronization == tf.VariableSynchronization.ON_READ)
