#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure int8 models of a table whose columns have different magnitudes, normalized inside and outside of the model.

    nice -n 10 python benchmarks/table_scaling.py

The table is scikit-learn's wine data: 178 rows, 13 columns with magnitudes from 0.13 to 1,680, 3 classes. 120 rows
train and calibrate, 58 are test. One model, trained once with a Normalization layer, is converted with this layer, and
without it for columns that are normalized before. Prints the table of docs/tabular.md.
"""

import warnings
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_wine

import tfq

SCHEMES: dict[str, dict[str, Any]] = {
    "`int8`": {},
    "`int8`, first layer in float": {"inference_input_type": "float32", "float_layers": ("normalization",)},
    "`int16x8`": {"scheme": "int16x8"},
    "`dynamic_range`": {"scheme": "dynamic_range"},
}


def main():
    """Train, convert, evaluate and print."""
    warnings.simplefilter("ignore", tfq.TfqWarning)
    x, y = load_wine(return_X_y=True)
    x = x.astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:120], order[120:]
    keras.utils.set_random_seed(0)
    normalization = keras.layers.Normalization(name="normalization")
    normalization.adapt(x[train])
    layers = [keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    inside = keras.Sequential([keras.Input((13,), name="x"), normalization, *layers])
    inside.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    inside.fit(x[train], y[train], epochs=40, verbose=0)
    outside = keras.Sequential([keras.Input((13,), name="x"), *layers])
    normalized = np.asarray(normalization(x))

    print("| normalized | conversion | accuracy (float) | accuracy | agreement |\n|---|---|---|---|---|")
    for where, model, values in (("in the model", inside, x), ("before the model", outside, normalized)):
        floating = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
        for name, settings in SCHEMES.items():
            if model is outside and "float_layers" in settings:
                continue
            content = tfq.convert(model, values[train], config=tfq.ConversionConfig(**settings))
            config = tfq.EvaluationConfig(num_runs=0)
            record = tfq.evaluate(content, (values[test], y[test]), reference=floating, config=config)
            expected = (model.predict(values[test], verbose=0).argmax(axis=1) == y[test]).mean()
            print(f"| {where} | {name} | {expected:.1%} | {record.accuracy:.1%} | {record.agreement:.1%} |", flush=True)


if __name__ == "__main__":
    main()
