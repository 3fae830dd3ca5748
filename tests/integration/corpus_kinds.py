# SPDX-License-Identifier: Apache-2.0
"""Corpus models of the faults that conversions to int8 have had: masks, dead tensors, joins, ids as floats ..."""

from collections.abc import Callable
from typing import Any

import numpy as np
from corpus import NUM_SAMPLES, CorpusModel, functional, smooth

from tfq.keras_bridge import import_keras, import_tf_keras

TOKENS, WIDTH = 10, 16
DEAD = -1e3


def keras_modules() -> tuple[Any, Any, Any]:
    keras = import_keras()
    return keras, keras.layers, keras.ops


def sequences() -> dict[str, Any]:
    return {"x": smooth((TOKENS, WIDTH))}


def padded() -> dict[str, Any]:
    """Return sequences, and a mask that is 0 after the end of each."""
    lengths = np.random.default_rng(2).integers(4, TOKENS + 1, NUM_SAMPLES)
    return sequences() | {"mask": (np.arange(TOKENS) < lengths[:, None]).astype(np.int32)}


def attention_padding() -> Any:
    _, L, o = keras_modules()

    def call(x: Any, mask: Any) -> Any:
        return L.MultiHeadAttention(2, 8)(x, x, attention_mask=o.cast(o.expand_dims(mask, 1), "bool"))

    return functional(padded(), call)


def attention_causal() -> Any:
    _, L, _ = keras_modules()
    return functional(sequences(), lambda x: L.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True))


def attention_group_query_causal() -> Any:
    _, L, _ = keras_modules()
    return functional(sequences(), lambda x: L.GroupQueryAttention(8, 4, 2)(x, x, use_causal_mask=True))


def attention_layer_mask() -> Any:
    _, L, o = keras_modules()

    def call(x: Any, mask: Any) -> Any:
        keep = o.cast(mask, "bool")
        return L.Attention()([L.Dense(WIDTH)(x), x], mask=[keep, keep])

    return functional(padded(), call)


def additive_attention_mask() -> Any:
    _, L, o = keras_modules()

    def call(x: Any, mask: Any) -> Any:
        keep = o.cast(mask, "bool")
        return L.AdditiveAttention()([L.Dense(WIDTH)(x), x], mask=[keep, keep])

    return functional(padded(), call)


def scores(L: Any, o: Any, x: Any) -> Any:
    query, key = L.Dense(8)(x), L.Dense(8)(x)
    return o.matmul(query, o.swapaxes(key, 1, 2))


def mask_added_constant() -> Any:
    _, L, o = keras_modules()
    triangle = np.triu(np.full((TOKENS, TOKENS), -1e9, "float32"), 1)
    return functional(sequences(), lambda x: o.matmul(o.softmax(scores(L, o, x) + triangle), x))


def mask_multiplied() -> Any:
    _, L, o = keras_modules()

    def call(x: Any, mask: Any) -> Any:
        drop = (1.0 - o.cast(o.expand_dims(mask, 1), "float32")) * -1e9
        return o.matmul(o.softmax(scores(L, o, x) + drop), x)

    return functional(padded(), call)


def mask_selected() -> Any:
    _, L, o = keras_modules()

    def call(x: Any, mask: Any) -> Any:
        keep = o.cast(o.expand_dims(mask, 1), "bool")
        return o.matmul(o.softmax(o.where(keep, scores(L, o, x), -1e9)), x)

    return functional(padded(), call)


def softmax_layer_mask() -> Any:
    _, L, o = keras_modules()
    return functional(
        padded(), lambda x, mask: L.Softmax()(scores(L, o, x), mask=o.cast(o.expand_dims(mask, 1), "bool"))
    )


def max_pool_of_padding() -> Any:
    _, L, o = keras_modules()

    def call(x: Any) -> Any:
        x = o.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        return L.MaxPooling2D(3, 2)(x)

    return functional({"x": smooth((8, 8, 4))}, call)


def of_vectors(call: Callable[..., Any]) -> Callable[[], Any]:
    """Return a model of one vector; `call(L, x, biased)`, in which biased(b) starts a bias at b."""

    def build() -> Any:
        keras, L, _ = keras_modules()
        return functional({"x": smooth((16,))}, lambda x: call(L, x, keras.initializers.Constant))

    return build


def dead(L: Any, x: Any, biased: Any) -> Any:
    return L.Dense(8, activation="relu", bias_initializer=biased(DEAD))(x)


DEAD_TENSORS: dict[str, Callable[..., Any]] = {
    "before_head": lambda L, x, b: [L.Dense(3)(x), L.Dense(3)(dead(L, x, b))],
    "beside_head": lambda L, x, b: L.Dense(3)(L.Add()([L.Dense(8)(x), dead(L, x, b)])),
    "concatenated": lambda L, x, b: L.Dense(3)(L.Concatenate()([L.Dense(8)(x), dead(L, x, b)])),
    "second_output": lambda L, x, b: [L.Dense(3)(x), dead(L, x, b)],
    "multiplied": lambda L, x, b: L.Add()([L.Dense(8)(x), L.Multiply()([L.Dense(8)(x), dead(L, x, b)])]),
    "residual": lambda L, x, b: L.Dense(3)(L.Add()([L.Dense(8)(x), L.Dense(8)(dead(L, x, b))])),
}


def zero_gamma() -> Any:
    _, L, _ = keras_modules()

    def call(x: Any) -> Any:
        branch = L.BatchNormalization(name="branch")(L.Dense(8, use_bias=False)(x))
        return L.Dense(3)(L.ReLU()(L.Add()([L.Dense(8)(x), branch])))

    model, samples = functional({"x": smooth((16,))}, call)
    layer = model.get_layer("branch")
    layer.gamma.assign(0 * layer.gamma)
    layer.beta.assign(0 * layer.beta)
    return model, samples


def zero_head() -> Any:
    _, L, _ = keras_modules()
    model, samples = functional({"x": smooth((16,))}, lambda x: [L.Dense(3)(x), L.Dense(3, name="zero")(x)])
    model.get_layer("zero").set_weights([np.zeros((16, 3), "float32"), np.zeros(3, "float32")])
    return model, samples


def dead_convolution() -> Any:
    keras, L, _ = keras_modules()

    def call(x: Any) -> Any:
        y = L.Conv2D(4, 3, activation="relu", bias_initializer=keras.initializers.Constant(DEAD), padding="same")(x)
        return L.Add()([L.Conv2D(4, 1)(x), L.Conv2D(4, 1)(y)])

    return functional({"x": smooth((8, 8, 4))}, call)


def join(kind: str) -> Callable[[], Any]:
    """Boxes in pixels joined with class scores, as in heads of detectors."""

    def build() -> Any:
        _, L, _ = keras_modules()
        kinds = {"softmax": L.Softmax(), "relu6": L.ReLU(6.0)}

        def call(x: Any) -> Any:
            x = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
            box, score = L.Rescaling(300.0)(L.Conv2D(4, 1)(x)), L.Conv2D(3, 1)(x)
            score = score if kind == "plain" else (kinds.get(kind) or L.Activation(kind))(score)
            return L.Concatenate()([box, score])

        return functional({"x": smooth((16, 16, 3), 0.0, 1.0)}, call)

    return build


def waves(count: int) -> np.ndarray:
    rng, time = np.random.default_rng(0), np.arange(count) / 2000
    rows = [np.sin(2 * np.pi * rng.uniform(20, 400) * time + rng.uniform(0, 6)) for _ in range(NUM_SAMPLES)]
    return np.stack([row * rng.uniform(0.2, 1) + rng.normal(0, 0.05, count) for row in rows]).astype(np.float32)


def mel_spectrogram() -> Any:
    _, L, _ = keras_modules()
    options = {"fft_length": 64, "sequence_stride": 32, "sampling_rate": 2000, "num_mel_bins": 10}
    return functional({"x": waves(512)}, lambda x: L.MelSpectrogram(**options)(x))


def stft_spectrogram(mode: str) -> Callable[[], Any]:
    def build() -> Any:
        _, L, _ = keras_modules()
        options = {"frame_length": 64, "frame_step": 32, "fft_length": 64}
        return functional({"x": waves(512)[..., None]}, lambda x: L.STFTSpectrogram(mode=mode, **options)(x))

    return build


def ids_as_floats(module: str) -> Callable[[], Any]:
    """Return a Sequential model that starts with an Embedding and has no Input: its ids arrive as float32."""

    def build() -> Any:
        keras = import_keras() if module == "keras" else import_tf_keras()
        L = keras.layers
        keras.utils.set_random_seed(0)
        ids = np.random.default_rng(0).integers(0, 2000, (NUM_SAMPLES, 10)).astype(np.float32)
        options = {} if module == "keras" else {"input_length": 10}
        model = keras.Sequential([L.Embedding(2000, 8, **options), L.GlobalAveragePooling1D(), L.Dense(3)])
        model(ids[:1])
        return model, {model.inputs[0].name.split(":")[0]: ids}

    return build


def many_scales() -> Any:
    """Return one input of sixteen columns with standard deviations from 0.1 to 100, then Normalization."""
    _, L, _ = keras_modules()
    x = smooth((16,)) * np.geomspace(0.1, 100, 16).astype(np.float32)
    layer = L.Normalization()
    layer.adapt(x)
    return functional({"x": x}, lambda tensor: L.Dense(3)(layer(tensor)))


def relu_then(name: str) -> Callable[[], Any]:
    def build() -> Any:
        _, L, _ = keras_modules()
        return functional({"x": smooth((8, 8, 4))}, lambda x: getattr(L, name)()(L.Conv2D(6, 3, activation="relu")(x)))

    return build


def squared_difference() -> Any:
    _, L, o = keras_modules()
    return functional({"x": smooth((16,))}, lambda x: o.square(L.Dense(6)(x) - L.Dense(6)(x)))


def compared_after(factor: float, name: str = "greater") -> Callable[[], Any]:
    """Return a condition on a tensor of very small or very large values."""

    def build() -> Any:
        _, _, o = keras_modules()
        x = (np.floor(smooth((8, 8, 4), 0.15, 1.85) * 8) / 8 + 1 / 16).astype(np.float32)
        compare = getattr(o, name)
        return functional({"x": x}, lambda t: o.where(compare(t * factor, o.flip(t, 1) * (1.06 * factor)), t, -t))

    return build


def compared_with_constant(factor: float) -> Callable[[], Any]:
    def build() -> Any:
        _, _, o = keras_modules()
        x = (np.floor(smooth((8, 8, 4), 0.15, 1.85) * 8) / 8 + 1 / 16).astype(np.float32)
        return functional({"x": x}, lambda t: o.where(t * factor > factor, t, -t))

    return build


def float_output_by_order() -> Any:
    """Return a sigmoid that is an output through a Reshape and is concatenated with a tensor of another range."""
    _, L, _ = keras_modules()

    def call(x: Any) -> Any:
        a = L.Conv2D(1, 3, padding="same", activation="sigmoid")(x)
        b = L.Conv2D(4, 3, padding="same", activation="relu")(x)
        y = L.Conv2D(1, 3, padding="same", activation="sigmoid")(L.Concatenate()([a, b]))
        return [L.Reshape((8, 8))(a), L.Reshape((8, 8))(y)]

    return functional({"x": smooth((8, 8, 2))}, call)


def transformer_block() -> Any:
    _, L, o = keras_modules()

    def call(x: Any, mask: Any) -> Any:
        keep = o.cast(o.expand_dims(mask, 1), "bool")
        x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 8)(x, x, attention_mask=keep))
        return L.LayerNormalization()(x + L.Dense(WIDTH)(L.Dense(32, activation="gelu")(x)))

    return functional(padded(), call)


def residual_block() -> Any:
    _, L, _ = keras_modules()

    def call(x: Any) -> Any:
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(x)))
        y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(y))
        return L.ReLU()(L.Add()([x, y]))

    return functional({"x": smooth((8, 8, 4))}, call)


def squeeze_and_excitation() -> Any:
    _, L, _ = keras_modules()

    def call(x: Any) -> Any:
        gate = L.Dense(4, activation="sigmoid")(L.Dense(2, activation="relu")(L.GlobalAveragePooling2D()(x)))
        return x * L.Reshape((1, 1, 4))(gate)

    return functional({"x": smooth((8, 8, 4))}, call)


BUILDERS: dict[str, Callable[[], Any]] = {
    "attention_padding": attention_padding,
    "attention_causal": attention_causal,
    "attention_group_query_causal": attention_group_query_causal,
    "attention_layer_mask": attention_layer_mask,
    "additive_attention_mask": additive_attention_mask,
    "mask_added_constant": mask_added_constant,
    "mask_multiplied": mask_multiplied,
    "mask_selected": mask_selected,
    "softmax_layer_mask": softmax_layer_mask,
    "max_pool_of_padding": max_pool_of_padding,
    **{f"dead_{name}": of_vectors(call) for name, call in DEAD_TENSORS.items()},
    "dead_zero_gamma": zero_gamma,
    "dead_zero_head": zero_head,
    "dead_convolution": dead_convolution,
    **{f"join_{kind}": join(kind) for kind in ("plain", "sigmoid", "softmax", "tanh", "relu6")},
    "MelSpectrogram": mel_spectrogram,
    **{f"STFTSpectrogram_{mode}": stft_spectrogram(mode) for mode in ("log", "magnitude", "psd")},
    "ids_as_floats_keras": ids_as_floats("keras"),
    "ids_as_floats_tf_keras": ids_as_floats("tf_keras"),
    "many_scales": many_scales,
    **{f"relu_{name}": relu_then(name) for name in ("PReLU", "LayerNormalization", "UnitNormalization")},
    "squared_difference": squared_difference,
    **{f"compared_{power}": compared_after(10.0**power) for power in (-4, -2, 3)},
    **{f"compared_with_constant_{power}": compared_with_constant(10.0**power) for power in (-4, -2, 3)},
    "float_output_by_order": float_output_by_order,
    "transformer_block": transformer_block,
    "residual_block": residual_block,
    "squeeze_and_excitation": squeeze_and_excitation,
}


def models() -> list[CorpusModel]:
    return [CorpusModel(name=f"kinds.{name}", build=build) for name, build in BUILDERS.items()]
