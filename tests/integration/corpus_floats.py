# SPDX-License-Identifier: Apache-2.0
"""The ops of the corpus models that stay float: an op that has a float tensor, other than QUANTIZE and DEQUANTIZE."""

# Float ops -> models of which these ops stay float in int8.
FLOAT_INT8 = {
    "ATAN2": "ops.arctan2",
    "BUCKETIZE": "layers.Discretization ops.digitize",
    "CAST": """
        kinds.mask_multiplied ops.bitwise_right_shift ops.bitwise_xor ops.cast_int ops.right_shift
        ops.unravel_index
    """,
    "CAST CUMSUM MINIMUM RELU RESHAPE TRANSPOSE": "layers.ContrastLimitedAdaptiveHistogramEqualization",
    "CAST FLOOR": "ops.saturate_cast",
    "CAST MUL": "ops.multi_hot",
    "CAST MUL STRIDED_SLICE": "ops.sparse_categorical_crossentropy",
    "CEIL": "ops.ceil",
    "CEIL FLOOR SELECT": "ops.trunc",
    "CONV_3D": "layers.Conv3D layers.SpatialDropout3D ops.image.extract_patches_3d",
    "CONV_3D_TRANSPOSE": "layers.Conv3DTranspose",
    "COS": "ops.cos",
    "CUMSUM": "ops.cumsum",
    "CUMSUM NOT_EQUAL": "ops.nancumsum",
    "CUMSUM SELECT_V2 SUB": "ops.sparsemax",
    "DYNAMIC_UPDATE_SLICE": "ops.slice_update",
    "FLOOR": "ops.equal ops.floor",
    "FLOOR NOT_EQUAL": "ops.not_equal",
    "FLOOR SHAPE TOPK_V2": "ops.unique",
    "FLOOR_DIV": "ops.floor_divide",
    "FLOOR_MOD": "ops.mod",
    "FLOOR_MOD SIGN": "ops.fmod",
    "IMAG REAL RFFT2D": "kinds.MelSpectrogram ops.rfft",
    "NOT_EQUAL": """
        layers.AutoContrast layers.Masking ops.count_nonzero ops.fmax ops.fmin ops.isnan ops.logaddexp
        ops.logaddexp2 ops.median ops.nan_to_num ops.nanargmax ops.nanargmin ops.nanmax ops.nanmean ops.nanmin
        ops.nanprod ops.nanstd ops.nansum ops.nanvar ops.percentile ops.quantile
    """,
    "POW": "ops.exp2 ops.power ops.vander",
    "POW SIGN": "ops.cbrt",
    "REAL RFFT2D": "ops.stft",
    "ROUND": "ops.round",
    "SELECT_V2 ZEROS_LIKE": "ops.tril ops.triu",
    "SIGN": "ops.sign",
    "SIN": "ops.sin ops.sinc",
    "TOPK_V2": "ops.argsort",
    "UNSORTED_SEGMENT_MAX": "ops.segment_max",
    "UNSORTED_SEGMENT_MIN": "ops.segment_min",
    "UNSORTED_SEGMENT_PROD": "ops.segment_prod",
    "UNSORTED_SEGMENT_SUM": "ops.segment_sum",
}

# Float ops -> models of which these ops stay float in int16x8.
FLOAT_INT16X8 = {
    "ARG_MAX": "ops.argmax",
    "ARG_MAX NOT_EQUAL SELECT_V2": "ops.nanargmax",
    "ARG_MAX ONE_HOT": "ops.one_hot",
    "ARG_MIN": "ops.argmin",
    "ARG_MIN NOT_EQUAL SELECT_V2": "ops.nanargmin",
    "ATAN2": "ops.arctan2",
    "BUCKETIZE": "layers.Discretization ops.digitize",
    "CAST": """
        kinds.mask_multiplied ops.bitwise_right_shift ops.bitwise_xor ops.cast_int ops.right_shift
        ops.unravel_index
    """,
    "CAST CUMSUM DIV EQUAL MINIMUM ONE_HOT RELU RESHAPE SELECT_V2 TRANSPOSE": """
        layers.ContrastLimitedAdaptiveHistogramEqualization
    """,
    "CAST EQUAL LOG_SOFTMAX MUL ONE_HOT SELECT_V2 STRIDED_SLICE": "ops.sparse_categorical_crossentropy",
    "CAST FLOOR": "ops.saturate_cast",
    "CAST MUL ONE_HOT": "ops.multi_hot",
    "CEIL": "ops.ceil",
    "CEIL FLOOR LESS": "ops.trunc",
    "CONV_3D": "layers.Conv3D layers.SpatialDropout3D ops.image.extract_patches_3d",
    "CONV_3D_TRANSPOSE": "layers.Conv3DTranspose",
    "COS": "ops.cos",
    "CUMSUM": "ops.cumsum",
    "CUMSUM DIV GREATER SELECT_V2 TOPK_V2": "ops.sparsemax",
    "CUMSUM EQUAL GREATER LESS NOT_EQUAL SELECT_V2": "ops.nancumsum",
    "DEPTH_TO_SPACE": "ops.depth_to_space",
    "DIV": """
        ops.categorical_crossentropy ops.divide ops.divide_by ops.image.ssim ops.reciprocal ops.softsign
        ops.true_divide
    """,
    "DIV EQUAL SELECT_V2": "ops.divide_no_nan",
    "DIV EQUAL SELECT_V2 SIN": "ops.sinc",
    "DIV EQUAL SELECT_V2 SQRT": "ops.hypot",
    "DIV NOT_EQUAL": "layers.AutoContrast",
    "DIV NOT_EQUAL SELECT_V2": "ops.nanmean ops.nanvar",
    "DIV NOT_EQUAL SELECT_V2 SQRT": "ops.nanstd",
    "DYNAMIC_UPDATE_SLICE": "ops.slice_update",
    "ELU": "layers.ELU ops.elu",
    "EQUAL": "ops.isfinite ops.isinf ops.isneginf ops.isposinf ops.ldexp",
    "EQUAL FLOOR": "ops.equal",
    "EQUAL GREATER LESS NOT_EQUAL SELECT_V2": "ops.nan_to_num",
    "EQUAL LESS_EQUAL": "ops.allclose",
    "EQUAL SELECT_V2": "ops.logsumexp ops.logsumexp_all",
    "FLOOR": "ops.floor",
    "FLOOR NOT_EQUAL": "ops.not_equal",
    "FLOOR TOPK_V2 UNIQUE": "ops.unique",
    "FLOOR_DIV": "ops.floor_divide",
    "FLOOR_MOD": "ops.mod",
    "FLOOR_MOD SIGN": "ops.fmod",
    "GREATER": """
        kinds.compared_-2 kinds.compared_-4 kinds.compared_3 kinds.compared_with_constant_-2
        kinds.compared_with_constant_-4 kinds.compared_with_constant_3 ops.all ops.any ops.greater ops.selu
        ops.where
    """,
    "GREATER LESS": "ops.logical ops.logical_or ops.logical_xor",
    "GREATER LESS SELECT_V2": "ops.heaviside ops.soft_shrink",
    "GREATER SELECT_V2": "layers.ReLU ops.hard_shrink ops.select ops.threshold ops.where_cast",
    "GREATER_EQUAL": "ops.greater_equal",
    "GREATER_EQUAL LESS_EQUAL SELECT_V2": "ops.sparse_sigmoid",
    "HARD_SWISH": "ops.hard_silu ops.hard_swish",
    "IMAG REAL RFFT2D": "ops.rfft",
    "IMAG REAL RFFT2D SQRT": "kinds.MelSpectrogram",
    "LESS": "ops.less",
    "LESS LESS_EQUAL SELECT_V2": "ops.sparse_plus",
    "LESS SELECT_V2": "ops.angle",
    "LESS_EQUAL": "ops.isclose ops.less_equal ops.logical_not",
    "LOG_SOFTMAX": "ops.log_softmax",
    "MATRIX_DIAG": "ops.diag ops.diagflat",
    "NOT_EQUAL": "ops.count_nonzero ops.isnan ops.logaddexp ops.logaddexp2",
    "NOT_EQUAL SELECT_V2": "layers.Masking ops.fmax ops.fmin ops.nanmax ops.nanmin ops.nanprod ops.nansum",
    "NOT_EQUAL SELECT_V2 TOPK_V2": "ops.median ops.percentile ops.quantile",
    "POW": "ops.exp2 ops.power ops.vander",
    "POW SIGN": "ops.cbrt",
    "PRELU": "layers.PReLU layers.PReLU_shared",
    "REAL RFFT2D": "ops.stft",
    "ROUND": "ops.round",
    "SCATTER_ND": "ops.fold ops.scatter ops.scatter_twice ops.scatter_update",
    "SELECT_V2": """
        kinds.additive_attention_mask kinds.attention_causal kinds.attention_group_query_causal
        kinds.attention_layer_mask kinds.attention_padding kinds.mask_selected kinds.softmax_layer_mask
        kinds.transformer_block layers.Embedding_masked ops.trace
    """,
    "SELECT_V2 ZEROS_LIKE": "ops.tril ops.triu",
    "SIGN": "ops.sign",
    "SIN": "ops.sin",
    "SPACE_TO_DEPTH": "ops.space_to_depth",
    "SQRT": """
        kinds.STFTSpectrogram_log kinds.STFTSpectrogram_magnitude ops.cdist ops.norm ops.sqrt ops.squareplus
        ops.std
    """,
    "TOPK_V2": "ops.argsort ops.sort ops.top_k",
    "UNSORTED_SEGMENT_MAX": "ops.segment_max",
    "UNSORTED_SEGMENT_MIN": "ops.segment_min",
    "UNSORTED_SEGMENT_PROD": "ops.segment_prod",
    "UNSORTED_SEGMENT_SUM": "ops.segment_sum",
}


def float_ops(name: str) -> dict[str, tuple[str, ...]]:
    """Return {scheme: float ops} for the schemes in which ops of the model `name` stay float."""
    tables = {"int8": FLOAT_INT8, "int16x8": FLOAT_INT16X8}
    return {
        scheme: tuple(ops.split())
        for scheme, table in tables.items()
        for ops, names in table.items()
        if name in names.split()
    }
