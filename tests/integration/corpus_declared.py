# SPDX-License-Identifier: Apache-2.0
"""The corpus models that a conversion may report as collapsed or refuse, by the op or the word that it must name.

A model that agrees with Keras also passes. If you fix a kind of fault, remove its models from this file.
"""

# Op -> models whose int8 collapse is reported with it.
COLLAPSES_INT8 = {
    "CONCATENATION": "kinds.join_plain kinds.join_relu6 kinds.join_sigmoid kinds.join_softmax kinds.join_tanh",
    "LOG": "kinds.MelSpectrogram kinds.STFTSpectrogram_log",
    "MUL": "kinds.STFTSpectrogram_psd kinds.many_scales",
    "QUANTIZE": "ops.scatter_twice",
    "GREATER": "ops.sparsemax",
    "CONV_2D": "kinds.STFTSpectrogram_magnitude",
    "SQRT": "kinds.STFTSpectrogram_magnitude",
    "SUB": "ops.image.ssim",
}

# The same in int16x8.
COLLAPSES_INT16X8 = {
    "LOG": "kinds.MelSpectrogram kinds.STFTSpectrogram_log",
    "MUL": "layers.ContrastLimitedAdaptiveHistogramEqualization",
    "GREATER": "ops.sparsemax",
}

# Word of the refusal -> models that both schemes refuse.
REFUSED = {
    "NaN": "kinds.relu_UnitNormalization",
    "WHILE": "ops.fori_loop ops.gcd ops.lcm ops.map ops.scan ops.while_loop",
    "switch_case": "ops.switch",
    "tf.Acos": "ops.arccos",
    "tf.Acosh": "ops.arccosh",
    "tf.AsString": "layers.Hashing",
    "tf.Asin": "ops.arcsin",
    "tf.Asinh": "ops.arcsinh",
    "tf.Atan": "ops.arctan",
    "tf.Atanh": "ops.arctanh",
    "tf.AvgPool3D": "layers.AdaptiveAveragePooling3D layers.AveragePooling3D",
    "tf.BesselI0": "ops.i0",
    "tf.BitwiseAnd": "ops.bitwise_and ops.signbit",
    "tf.BitwiseOr": "ops.bitwise_or",
    "tf.CTCGreedyDecoder": "ops.ctc_decode",
    "tf.Cholesky": "ops.cholesky ops.logdet",
    "tf.Complex": "ops.fft ops.fft2 ops.ifft2 ops.irfft ops.istft ops.polar",
    "tf.Cosh": "ops.cosh",
    "tf.Cross": "ops.cross",
    "tf.Cumprod": "ops.cumprod ops.nancumprod",
    "tf.DenseBincount": "layers.CategoryEncoding ops.bincount",
    "tf.Eig": "ops.eig",
    "tf.Erf": "ops.erf",
    "tf.Erfc": "ops.erfc",
    "tf.Erfinv": "ops.erfinv",
    "tf.ExtractImagePatches": "ops.unfold",
    "tf.HSVToRGB": "ops.image.hsv_to_rgb",
    "tf.ImageProjectiveTransformV3": "ops.image.affine_transform ops.image.perspective_transform",
    "tf.InTopKV2": "ops.in_top_k",
    "tf.Invert": "ops.bitwise_invert ops.bitwise_not",
    "tf.LeftShift": "ops.bitwise_left_shift ops.left_shift",
    "tf.LogMatrixDeterminant": "ops.slogdet",
    "tf.LowerBound": "ops.searchsorted",
    "tf.MatrixDeterminant": "ops.det",
    "tf.MatrixDiagPartV3": "ops.diagonal",
    "tf.MatrixInverse": "ops.inv",
    "tf.MatrixSolve": "ops.solve",
    "tf.MatrixTriangularSolve": "ops.cholesky_inverse ops.solve_triangular",
    "tf.MaxPool3D": "layers.AdaptiveMaxPooling3D layers.MaxPooling3D",
    "tf.NextAfter": "ops.nextafter",
    "tf.Placeholder": "layers.IntegerLookup",
    "tf.Qr": "ops.qr",
    "tf.RGBToHSV": "ops.image.rgb_to_hsv",
    "tf.ResizeBicubic": "ops.resize_bicubic",
    "tf.SelfAdjointEigV2": "ops.eigh",
    "tf.Sinh": "ops.sinh",
    "tf.StatelessRandomGetKeyCounter": "ops.image.elastic_transform",
    "tf.Svd": "ops.matrix_rank ops.pinv ops.svd",
    "tf.Tan": "ops.tan",
}


def declared(name: str) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return {scheme: ops} of collapses and {scheme: word} of refusals for the model `name`."""
    collapses = {}
    for scheme, table in (("int8", COLLAPSES_INT8), ("int16x8", COLLAPSES_INT16X8)):
        if ops := tuple(op for op, names in table.items() if name in names.split()):
            collapses[scheme] = ops
    words = [word for word, names in REFUSED.items() if name in names.split()]
    return collapses, dict.fromkeys(("int8", "int16x8"), words[0]) if words else {}
