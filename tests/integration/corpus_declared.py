# SPDX-License-Identifier: Apache-2.0
"""The corpus models that a conversion may report as collapsed or refuse, by the op or the word that it must name.

A model that agrees with Keras after all passes too: whoever fixes a kind takes its models out of here.
"""

# Op -> models whose collapse in int8 is reported with it.
COLLAPSES_INT8 = {
    "CONCATENATION": """
        kinds.join_plain kinds.join_relu6 kinds.join_sigmoid kinds.join_softmax kinds.join_tanh
    """,
    "CONV_2D": """
        kinds.dead_convolution
    """,
    "FULLY_CONNECTED": """
        kinds.dead_before_head kinds.dead_beside_head kinds.dead_multiplied kinds.dead_residual
        kinds.dead_second_output
    """,
    "GATHER": """
        kinds.ids_as_floats_keras kinds.ids_as_floats_tf_keras
    """,
    "LOG": """
        kinds.MelSpectrogram kinds.STFTSpectrogram_log
    """,
    "MUL": """
        kinds.STFTSpectrogram_psd kinds.many_scales
    """,
    "QUANTIZE": """
        ops.scatter_twice
    """,
    "SELECT_V2": """
        ops.sparsemax
    """,
    "SQRT": """
        kinds.STFTSpectrogram_magnitude
    """,
    "SUB": """
        ops.image.ssim
    """,
}

# The same in int16x8.
COLLAPSES_INT16X8 = {
    "ADD": """
        kinds.dead_zero_gamma kinds.relu_PReLU
    """,
    "CONV_2D": """
        kinds.dead_convolution
    """,
    "DIV": """
        layers.AutoContrast
    """,
    "EQUAL": """
        ops.ldexp
    """,
    "FULLY_CONNECTED": """
        kinds.dead_before_head kinds.dead_beside_head kinds.dead_concatenated kinds.dead_multiplied
        kinds.dead_residual kinds.dead_second_output
    """,
    "GREATER": """
        ops.select ops.soft_shrink ops.where ops.where_cast
    """,
    "LOG": """
        kinds.MelSpectrogram kinds.STFTSpectrogram_log
    """,
    "MINIMUM": """
        ops.categorical_crossentropy
    """,
    "PADV2": """
        kinds.max_pool_of_padding ops.pad_value
    """,
    "SCATTER_ND": """
        ops.fold ops.scatter ops.scatter_twice ops.scatter_update
    """,
    "SELECT_V2": """
        layers.ReLU
    """,
    "SQUARED_DIFFERENCE": """
        kinds.relu_LayerNormalization kinds.squared_difference layers.GroupNormalization_1D
        layers.LayerNormalization layers.LayerNormalization_image layers.LayerNormalization_sequence
        ops.layer_normalization ops.moments ops.psnr ops.variance
    """,
    "SUB": """
        ops.logaddexp ops.logaddexp2
    """,
    "SUM": """
        layers.AdditiveAttention layers.UnitNormalization layers.UnitNormalization_image ops.logsumexp
        ops.logsumexp_all ops.normalize ops.sum ops.trace ops.trapezoid
    """,
    "TOPK_V2": """
        ops.sparsemax
    """,
}

# Word of the refusal -> models that are refused in both schemes.
REFUSED = {
    "AssignVariableOp": """
        layers.MixUp layers.RandomColorDegeneration layers.RandomGrayscale layers.RandomHue
        layers.RandomPosterization layers.RandomSaturation layers.RandomSharpness
    """,
    "NaN": """
        kinds.relu_UnitNormalization
    """,
    "WHILE": """
        ops.fori_loop ops.gcd ops.lcm ops.map ops.scan ops.while_loop
    """,
    "switch_case": """
        ops.switch
    """,
    "tf.Acos": """
        ops.arccos
    """,
    "tf.Acosh": """
        ops.arccosh
    """,
    "tf.AsString": """
        layers.Hashing
    """,
    "tf.Asin": """
        ops.arcsin
    """,
    "tf.Asinh": """
        ops.arcsinh
    """,
    "tf.Atan": """
        ops.arctan
    """,
    "tf.Atanh": """
        ops.arctanh
    """,
    "tf.AvgPool3D": """
        layers.AdaptiveAveragePooling3D layers.AveragePooling3D
    """,
    "tf.BesselI0": """
        ops.i0
    """,
    "tf.BitwiseAnd": """
        ops.bitwise_and ops.signbit
    """,
    "tf.BitwiseOr": """
        ops.bitwise_or
    """,
    "tf.CTCGreedyDecoder": """
        ops.ctc_decode
    """,
    "tf.Cholesky": """
        ops.cholesky ops.logdet
    """,
    "tf.Complex": """
        ops.fft ops.fft2 ops.ifft2 ops.irfft ops.istft ops.polar
    """,
    "tf.Cosh": """
        ops.cosh
    """,
    "tf.Cross": """
        ops.cross
    """,
    "tf.Cumprod": """
        ops.cumprod ops.nancumprod
    """,
    "tf.DenseBincount": """
        layers.CategoryEncoding ops.bincount
    """,
    "tf.Eig": """
        ops.eig
    """,
    "tf.Erf": """
        ops.erf
    """,
    "tf.Erfc": """
        ops.erfc
    """,
    "tf.Erfinv": """
        ops.erfinv
    """,
    "tf.ExtractImagePatches": """
        ops.unfold
    """,
    "tf.HSVToRGB": """
        ops.image.hsv_to_rgb
    """,
    "tf.ImageProjectiveTransformV3": """
        ops.image.affine_transform ops.image.perspective_transform
    """,
    "tf.InTopKV2": """
        ops.in_top_k
    """,
    "tf.Invert": """
        ops.bitwise_invert ops.bitwise_not
    """,
    "tf.LeftShift": """
        ops.bitwise_left_shift ops.left_shift
    """,
    "tf.LogMatrixDeterminant": """
        ops.slogdet
    """,
    "tf.LowerBound": """
        ops.searchsorted
    """,
    "tf.MatrixDeterminant": """
        ops.det
    """,
    "tf.MatrixDiagPartV3": """
        ops.diagonal
    """,
    "tf.MatrixInverse": """
        ops.inv
    """,
    "tf.MatrixSolve": """
        ops.solve
    """,
    "tf.MatrixTriangularSolve": """
        ops.cholesky_inverse ops.solve_triangular
    """,
    "tf.MaxPool3D": """
        layers.AdaptiveMaxPooling3D layers.MaxPooling3D
    """,
    "tf.NextAfter": """
        ops.nextafter
    """,
    "tf.Placeholder": """
        layers.IntegerLookup
    """,
    "tf.Qr": """
        ops.qr
    """,
    "tf.RGBToHSV": """
        ops.image.rgb_to_hsv
    """,
    "tf.ResizeBicubic": """
        ops.resize_bicubic
    """,
    "tf.SelfAdjointEigV2": """
        ops.eigh
    """,
    "tf.Sinh": """
        ops.sinh
    """,
    "tf.StatelessRandomGetKeyCounter": """
        ops.image.elastic_transform
    """,
    "tf.Svd": """
        ops.matrix_rank ops.pinv ops.svd
    """,
    "tf.Tan": """
        ops.tan
    """,
}

# The same in int16x8 alone. "INT16" is TensorFlow's word, which names no op.
REFUSED_INT16X8 = {
    "INT16": """
        kinds.ids_as_floats_tf_keras layers.Conv3D layers.Conv3DTranspose layers.Discretization layers.ELU
        layers.Masking layers.PReLU layers.PReLU_shared layers.SpatialDropout3D ops.all ops.angle ops.any
        ops.arctan2 ops.argmax ops.cdist ops.ceil ops.cos ops.cumsum ops.depth_to_space ops.diag
        ops.diagflat ops.digitize ops.divide ops.divide_by ops.divide_no_nan ops.elu ops.exp2 ops.floor
        ops.floor_divide ops.greater ops.greater_equal ops.hard_shrink ops.hard_silu ops.hard_swish
        ops.heaviside ops.image.extract_patches_3d ops.isnan ops.isneginf ops.isposinf ops.less
        ops.less_equal ops.log_softmax ops.logical ops.logical_not ops.logical_or ops.logical_xor ops.median
        ops.mod ops.nan_to_num ops.nanargmax ops.nanargmin ops.nancumsum ops.nanmax ops.nanmean ops.nanmin
        ops.nanprod ops.nanstd ops.nansum ops.nanvar ops.norm ops.one_hot ops.percentile ops.power
        ops.quantile ops.reciprocal ops.rfft ops.round ops.segment_max ops.segment_min ops.segment_prod
        ops.segment_sum ops.sign ops.sin ops.sinc ops.slice_update ops.softsign ops.space_to_depth
        ops.sparse_plus ops.sparse_sigmoid ops.sqrt ops.std ops.stft ops.threshold ops.top_k ops.true_divide
        ops.vander ops.view
    """,
    "Max and min": """
        kinds.ids_as_floats_keras layers.ContrastLimitedAdaptiveHistogramEqualization
        ops.sparse_categorical_crossentropy ops.tril ops.triu
    """,
    "whole numbers": """
        kinds.additive_attention_mask kinds.attention_layer_mask kinds.attention_padding
        kinds.mask_multiplied kinds.mask_selected kinds.softmax_layer_mask kinds.transformer_block
        layers.Embedding layers.Embedding_masked layers.ReversibleEmbedding
    """,
}


def declared(name: str) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return {scheme: ops} of collapses and {scheme: word} of refusals for the model `name`."""
    collapses, refused = {}, {}
    for scheme, table in (("int8", COLLAPSES_INT8), ("int16x8", COLLAPSES_INT16X8)):
        if ops := tuple(op for op, names in table.items() if name in names.split()):
            collapses[scheme] = ops
    for scheme, tables in (("int8", (REFUSED,)), ("int16x8", (REFUSED, REFUSED_INT16X8))):
        if words := [word for table in tables for word, names in table.items() if name in names.split()]:
            refused[scheme] = words[0]
    return collapses, refused
