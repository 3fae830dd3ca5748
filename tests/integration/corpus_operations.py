# SPDX-License-Identifier: Apache-2.0
"""One corpus model for each function of `keras.ops`, and the functions that have none, with the reason."""

from collections.abc import Callable
from typing import Any

import numpy as np
from corpus import CorpusModel, functional, smooth
from keras_operations import FLOAT, INT8, KERNEL, NO_TFLITE, ROW, SHAPE

from tfq.keras_bridge import import_keras

_RNG = np.random.default_rng(3)
LEFT = _RNG.normal(size=(8, 8)).astype("float32")
DEPTHWISE = (_RNG.normal(size=(3, 3, 4, 1)) / 3).astype("float32")
POINTWISE = (_RNG.normal(size=(1, 1, 4, 3)) / 2).astype("float32")
CHANNELS = _RNG.uniform(0.5, 1.5, 4).astype("float32")

Call = Callable[[Any, Any], Any]


def row(x: Any) -> Any:
    """Return (1, 8, 4): the first line of the image."""
    return x[:, 0]


def square(o: Any, x: Any) -> Any:
    """Return a well-conditioned matrix (1, 4, 4)."""
    return x[:, 0, :4] + 4.0 * np.eye(4, dtype="float32")


# With a row that is near 0 in keras_operations.py: one channel would vary by less than a step of the others' scale.
INSTEAD: dict[str, Call] = {
    "multiply_constant": lambda o, x: x * CHANNELS,
    "rms": lambda o, x: o.rms_normalization(x, CHANNELS),
    "layer_normalization": lambda o, x: o.layer_normalization(x, CHANNELS, ROW),
}

# x: (1, 8, 8, 4) in (0.1, 1.9), varying slowly. In addition to the operations of keras_operations.py.
ARITHMETIC: dict[str, Call] = {
    "abs": lambda o, x: o.abs(x - 1.0),
    "fabs": lambda o, x: o.fabs(x - 1.0),
    "arccos": lambda o, x: o.arccos(x / 2.0),
    "arccosh": lambda o, x: o.arccosh(x + 1.0),
    "arcsin": lambda o, x: o.arcsin(x / 2.0),
    "arcsinh": lambda o, x: o.arcsinh(x),
    "arctan": lambda o, x: o.arctan(x - 1.0),
    "arctan2": lambda o, x: o.arctan2(x, 2.0 - x),
    "arctanh": lambda o, x: o.arctanh(x / 2.0),
    "cbrt": lambda o, x: o.cbrt(x),
    "cosh": lambda o, x: o.cosh(x),
    "sinh": lambda o, x: o.sinh(x),
    "tan": lambda o, x: o.tan(x / 2.0),
    "deg2rad": lambda o, x: o.deg2rad(x),
    "rad2deg": lambda o, x: o.rad2deg(x),
    "divide_no_nan": lambda o, x: o.divide_no_nan(x, x[..., :1] + 1.0),
    "true_divide": lambda o, x: o.true_divide(x, x[..., :1] + 1.0),
    "exp2": lambda o, x: o.exp2(x),
    "expm1": lambda o, x: o.expm1(x),
    "erfc": lambda o, x: o.erfc(x),
    "erfinv": lambda o, x: o.erfinv(x / 2.0),
    "floor_divide": lambda o, x: o.floor_divide(x, 0.5),
    "fmax": lambda o, x: o.fmax(x, 1.0),
    "fmin": lambda o, x: o.fmin(x, 1.0),
    "fmod": lambda o, x: o.fmod(x, 0.75),
    "heaviside": lambda o, x: o.heaviside(x - 1.0, np.float32(0.5)),
    "hypot": lambda o, x: o.hypot(x, 2.0 - x),
    "i0": lambda o, x: o.i0(x),
    "ldexp": lambda o, x: o.ldexp(x, np.int32(2)),
    "log10": lambda o, x: o.log10(x),
    "log1p": lambda o, x: o.log1p(x),
    "log2": lambda o, x: o.log2(x),
    "logaddexp": lambda o, x: o.logaddexp(x, 2.0 - x),
    "logaddexp2": lambda o, x: o.logaddexp2(x, 2.0 - x),
    "nan_to_num": lambda o, x: o.nan_to_num(x * 2.0),
    "nextafter": lambda o, x: o.nextafter(x, x + 1.0),
    "sinc": lambda o, x: o.sinc(x),
    "trunc": lambda o, x: o.trunc(3.0 * x),
    "saturate_cast": lambda o, x: o.saturate_cast(o.floor(x * 2.0) + 0.5, "uint8"),
    "stop_gradient": lambda o, x: o.stop_gradient(x * 0.7),
    "hard_shrink": lambda o, x: o.hard_shrink(x - 1.0),
    "soft_shrink": lambda o, x: o.soft_shrink(x - 1.0),
    "tanh_shrink": lambda o, x: o.tanh_shrink(x),
    "hard_swish": lambda o, x: o.hard_swish(4.0 * x - 4.0),
    "swish": lambda o, x: o.swish(x - 1.0),
    "log_sigmoid": lambda o, x: o.log_sigmoid(4.0 * x - 4.0),
    "sparse_plus": lambda o, x: o.sparse_plus(2.0 * x - 2.0),
    "sparse_sigmoid": lambda o, x: o.sparse_sigmoid(2.0 * x - 2.0),
    "sparsemax": lambda o, x: o.sparsemax(x),
    "threshold": lambda o, x: o.threshold(x, 0.8, 0.2),
    "polar": lambda o, x: o.real(o.polar(x, x)),
    "identity": lambda o, x: x @ o.identity(4),
    "zeros_like": lambda o, x: x + o.zeros_like(x),
    "ones_like": lambda o, x: x + o.ones_like(x),
    "full_like": lambda o, x: x + o.full_like(x, 0.5),
    "empty_like": lambda o, x: x + 0.0 * o.empty_like(x),
}

CONDITIONS: dict[str, Call] = {
    "equal": lambda o, x: o.equal(o.floor(x * 2.0), 1.0),
    "not_equal": lambda o, x: o.not_equal(o.floor(x * 2.0), 1.0),
    "greater_equal": lambda o, x: o.greater_equal(x, 1.0),
    "less": lambda o, x: o.less(x, 1.0),
    "less_equal": lambda o, x: o.less_equal(x, 1.0),
    "logical_not": lambda o, x: o.logical_not(x > 1.0),
    "logical_or": lambda o, x: o.logical_or(x < 0.5, x > 1.0),
    "logical_xor": lambda o, x: o.logical_xor(x < 1.5, x > 1.0),
    "all": lambda o, x: o.all(x > 0.6, axis=-1),
    "any": lambda o, x: o.any(x > 1.4, axis=-1),
    "isclose": lambda o, x: o.isclose(x, 1.0, atol=0.3),
    "isfinite": lambda o, x: o.isfinite(x),
    "isinf": lambda o, x: o.isinf(x),
    "isnan": lambda o, x: o.isnan(x),
    "isneginf": lambda o, x: o.isneginf(x),
    "isposinf": lambda o, x: o.isposinf(x),
    "isreal": lambda o, x: o.isreal(x),
    "signbit": lambda o, x: o.signbit(x - 1.0),
    "allclose": lambda o, x: o.allclose(x, 1.0, atol=0.88),
    "in_top_k": lambda o, x: o.in_top_k(np.arange(8, dtype="int32") % 4, x[0, 0], 2),
    "where_cast": lambda o, x: x * o.cast(x > 1.0, "float32"),
    "select": lambda o, x: o.select([x > 1.4, x > 0.7], [x, 0.5 * x], 0.0),
    "switch": lambda o, x: o.switch(o.cast(o.mean(x) + 0.0, "int32"), [lambda v: v, lambda v: -v], x),
    "count_nonzero": lambda o, x: o.count_nonzero(o.relu(x - 1.0), axis=-1),
}

# By floor of 3 x: integers from 0 to 5.
INTEGERS: dict[str, Call] = {
    "bitwise_and": lambda o, i: o.bitwise_and(i, np.int32(3)),
    "bitwise_invert": lambda o, i: o.bitwise_invert(i),
    "bitwise_left_shift": lambda o, i: o.bitwise_left_shift(i, 2),
    "bitwise_not": lambda o, i: o.bitwise_not(i),
    "bitwise_or": lambda o, i: o.bitwise_or(i, np.int32(2)),
    "bitwise_right_shift": lambda o, i: o.bitwise_right_shift(i, 1),
    "bitwise_xor": lambda o, i: o.bitwise_xor(i, np.int32(5)),
    "left_shift": lambda o, i: o.left_shift(i, 2),
    "right_shift": lambda o, i: o.right_shift(i, 1),
    "gcd": lambda o, i: o.gcd(i, 4),
    "lcm": lambda o, i: o.lcm(i, 4),
    "bincount": lambda o, i: o.bincount(o.reshape(i, (1, -1)), minlength=6),
    "multi_hot": lambda o, i: o.multi_hot(i[:, 0, 0], 6),
    "unravel_index": lambda o, i: o.unravel_index(i, (2, 3))[1],
}

REDUCTIONS: dict[str, Call] = {
    "amax": lambda o, x: o.amax(x, axis=1),
    "amin": lambda o, x: o.amin(x, axis=1),
    "average": lambda o, x: o.average(x, axis=-1, weights=CHANNELS),
    "logsumexp_all": lambda o, x: o.logsumexp(x, axis=(1, 2)),
    "median": lambda o, x: o.median(x, axis=-1),
    "percentile": lambda o, x: o.percentile(x, 30, axis=-1),
    "quantile": lambda o, x: o.quantile(x, 0.3, axis=-1),
    "ptp": lambda o, x: o.ptp(x, axis=-1),
    "adaptive_average_pool": lambda o, x: o.adaptive_average_pool(x, (2, 3)),
    "adaptive_max_pool": lambda o, x: o.adaptive_max_pool(x, (2, 3)),
    "moments": lambda o, x: o.moments(x, axes=[1, 2]),
    "nanargmax": lambda o, x: o.nanargmax(x, axis=-1),
    "nanargmin": lambda o, x: o.nanargmin(x, axis=-1),
    "nancumprod": lambda o, x: o.nancumprod(x, axis=-1),
    "nancumsum": lambda o, x: o.nancumsum(x, axis=-1),
    "nanmax": lambda o, x: o.nanmax(x, axis=-1),
    "nanmean": lambda o, x: o.nanmean(x, axis=-1),
    "nanmin": lambda o, x: o.nanmin(x, axis=-1),
    "nanprod": lambda o, x: o.nanprod(x, axis=-1),
    "nanstd": lambda o, x: o.nanstd(x, axis=-1),
    "nansum": lambda o, x: o.nansum(x, axis=-1),
    "nanvar": lambda o, x: o.nanvar(x, axis=-1),
    "cumprod": lambda o, x: o.cumprod(x, axis=-1),
    "trapezoid": lambda o, x: o.trapezoid(x, axis=1),
    "trace": lambda o, x: o.trace(x, axis1=1, axis2=2),
    "segment_max": lambda o, x: o.segment_max(x[0, 0], np.array([0, 0, 1, 1, 1, 2, 2, 3]), 4),
    "segment_min": lambda o, x: o.segment_min(x[0, 0], np.array([0, 0, 1, 1, 1, 2, 2, 3]), 4),
    "segment_prod": lambda o, x: o.segment_prod(x[0, 0], np.array([0, 0, 1, 1, 1, 2, 2, 3]), 4),
    "segment_sum": lambda o, x: o.segment_sum(x[0, 0], np.array([0, 0, 1, 1, 1, 2, 2, 3]), 4),
    "binary_crossentropy": lambda o, x: o.binary_crossentropy(o.tanh(x), x / 2.0),
    "categorical_crossentropy": lambda o, x: o.categorical_crossentropy(o.softmax(3.0 * x), x),
    "sparse_categorical_crossentropy": lambda o, x: o.sparse_categorical_crossentropy(
        o.cast(2.0 * x[..., 0], "int32"), 3.0 * x, from_logits=True
    ),
    "psnr": lambda o, x: o.psnr(x, o.tanh(x), 2.0),
}

SHAPES: dict[str, Call] = {
    "append": lambda o, x: o.append(x, o.tanh(x), axis=1),
    "argsort": lambda o, x: o.argsort(x, axis=1),
    "sort": lambda o, x: o.sort(x, axis=-1),
    "array_split": lambda o, x: o.array_split(x, 3, axis=1)[1],
    "broadcast_to": lambda o, x: o.broadcast_to(x[:, :1], (1, 8, 8, 4)),
    "diag": lambda o, x: o.diag(x[0, 0, :, 0]),
    "diagflat": lambda o, x: o.diagflat(x[0, 0]),
    "diagonal": lambda o, x: o.diagonal(x, axis1=1, axis2=2),
    "diff": lambda o, x: o.diff(x, axis=1),
    "digitize": lambda o, x: o.digitize(x, np.array([0.5, 1.0, 1.5])),
    "searchsorted": lambda o, x: o.searchsorted(np.array([0.5, 1.0, 1.5], "float32"), x[0, 0, :, 0]),
    "dsplit": lambda o, x: o.dsplit(x, 2)[1],
    "hsplit": lambda o, x: o.hsplit(x, 2)[1],
    "vsplit": lambda o, x: o.vsplit(x[0], 2)[1],
    "dstack": lambda o, x: o.dstack([x, o.tanh(x)]),
    "hstack": lambda o, x: o.hstack([x, o.tanh(x)]),
    "vstack": lambda o, x: o.vstack([x[0], o.tanh(x[0])]),
    "fliplr": lambda o, x: o.fliplr(x),
    "flipud": lambda o, x: o.flipud(x[0]),
    "get_item": lambda o, x: o.get_item(x, (slice(None), 2)),
    "ravel": lambda o, x: o.ravel(x),
    "rearrange": lambda o, x: o.rearrange(x[0], "h w c -> (h w) c"),
    "slice": lambda o, x: o.slice(x, (0, 1, 2, 0), (1, 5, 4, 4)),
    "slice_update": lambda o, x: o.slice_update(x, (0, 1, 2, 0), np.full((1, 2, 2, 4), 0.5, "float32")),
    "scatter": lambda o, x: o.scatter(np.array([[3], [0]]), x[0, :2, 0], (5, 4)),
    "scatter_twice": lambda o, x: o.scatter(np.array([[3], [0], [3]]), x[0, :3, 0], (5, 4)),
    "scatter_update": lambda o, x: o.scatter_update(x[0], np.array([[3], [0]]), x[0, 4:6]),
    "take_along_axis": lambda o, x: o.take_along_axis(x, np.full((1, 8, 8, 1), 2, "int32"), axis=-1),
    "tri": lambda o, x: x[..., 0] * o.tri(8),
    "tril": lambda o, x: o.tril(x[..., 0]),
    "triu": lambda o, x: o.triu(x[..., 0]),
    "meshgrid": lambda o, x: o.meshgrid(x[0, 0, :, 0], x[0, 1, :, 0]),
    "extract_sequences": lambda o, x: o.extract_sequences(o.reshape(x, (1, 256)), 32, 16),
    "fold": lambda o, x: o.fold(o.reshape(x, (1, 16, 16)), (8, 8), 2, stride=2),
    "unfold": lambda o, x: o.unfold(o.transpose(x, (0, 3, 1, 2)), 2, stride=2),
    "vander": lambda o, x: o.vander(x[0, 0, :, 0], 3),
    "unique": lambda o, x: o.unique(o.floor(3.0 * x)),
    "map": lambda o, x: o.map(lambda v: v * 2.0, x[0]),
    "vectorized_map": lambda o, x: o.vectorized_map(lambda v: v * 2.0, x[0]),
    "scan": lambda o, x: o.scan(lambda c, v: (c + v, c), x[0, 0], x[0])[0],
    "associative_scan": lambda o, x: o.associative_scan(lambda a, b: a + b, x, axis=1),
    "while_loop": lambda o, x: o.while_loop(lambda v: o.max(v) < 4.0, lambda v: (v * 2.0,), (x,))[0],
    "fori_loop": lambda o, x: o.fori_loop(0, 3, lambda i, v: v * 1.1, x),
}

PRODUCTS: dict[str, Call] = {
    "batch_normalization": lambda o, x: o.batch_normalization(x, CHANNELS, CHANNELS, -1, ROW, CHANNELS),
    "cdist": lambda o, x: o.cdist(x[:, 0], x[:, 4]),
    "depthwise_conv": lambda o, x: o.depthwise_conv(x, DEPTHWISE),
    "separable_conv": lambda o, x: o.separable_conv(x, DEPTHWISE, POINTWISE),
    "correlate": lambda o, x: o.correlate(x[0, 0, :, 0], np.array([0.5, -1.0, 0.25], "float32")),
    "cross": lambda o, x: o.cross(x[..., :3], CHANNELS[:3]),
    "dot_product_attention": lambda o, x: o.dot_product_attention(4.0 * x - 4.0, 4.0 * x - 4.0, x),
    "inner": lambda o, x: o.inner(x[0, 0], LEFT[:, :4]),
    "outer": lambda o, x: o.outer(x[0, 0, :, 0], CHANNELS),
    "tensordot": lambda o, x: o.tensordot(x, KERNEL, axes=1),
    "vdot": lambda o, x: o.vdot(x[0, 0, 0], ROW),
    "cholesky": lambda o, x: o.cholesky(o.matmul(square(o, x), o.swapaxes(square(o, x), 1, 2))),
    "cholesky_inverse": lambda o, x: o.cholesky_inverse(square(o, x)),
    "det": lambda o, x: o.det(square(o, x)),
    "eig": lambda o, x: o.real(o.eig(square(o, x))[0]),
    "eigh": lambda o, x: o.eigh(square(o, x))[0],
    "inv": lambda o, x: o.inv(square(o, x)),
    "logdet": lambda o, x: o.logdet(o.matmul(square(o, x), o.swapaxes(square(o, x), 1, 2))),
    "slogdet": lambda o, x: o.slogdet(square(o, x))[1],
    "lstsq": lambda o, x: o.lstsq(LEFT, x[0, 0]),
    "matrix_rank": lambda o, x: o.matrix_rank(square(o, x)),
    "pinv": lambda o, x: o.pinv(square(o, x)),
    "qr": lambda o, x: o.qr(square(o, x))[1],
    "solve": lambda o, x: o.solve(square(o, x), x[:, 0, :4]),
    "solve_triangular": lambda o, x: o.solve_triangular(o.tril(square(o, x)), x[:, 0, :4], lower=True),
    "svd": lambda o, x: o.svd(square(o, x))[1],
    "fft": lambda o, x: o.fft((x[..., 0], 0.0 * x[..., 0])),
    "fft2": lambda o, x: o.fft2((x[..., 0], 0.0 * x[..., 0])),
    "ifft2": lambda o, x: o.ifft2((x[..., 0], 0.0 * x[..., 0])),
    "rfft": lambda o, x: o.rfft(x[..., 0]),
    "irfft": lambda o, x: o.irfft((x[:, 0, :5, 0], 0.0 * x[:, 0, :5, 0])),
    # The real part, because the imaginary one of frequency 0 is rounding noise in the float flatbuffer and 0 in Keras.
    "stft": lambda o, x: o.stft(o.reshape(x, (1, 256)), 32, 16, 32)[0],
    "istft": lambda o, x: o.istft(o.stft(o.reshape(x, (1, 256)), 32, 16, 32), 32, 16, 32),
    "angle": lambda o, x: o.angle(x - 1.0),
    "conj": lambda o, x: o.conj(x * 0.7),
    "conjugate": lambda o, x: o.conjugate(x * 0.7),
    "real": lambda o, x: o.real(x * 0.7),
    "imag": lambda o, x: x + o.imag(x),
    "ctc_decode": lambda o, x: o.ctc_decode(x[:, 0], np.array([8]))[1],
}

TURN = np.array([[0.9, 0.1, 0.2, -0.1, 0.95, 0.3, 0.0, 0.0]], "float32")
CORNERS = np.array([[[0, 0], [7, 0], [0, 7], [7, 7]]], "float32")
IMAGES: dict[str, Call] = {
    "affine_transform": lambda o, x: o.image.affine_transform(x, TURN),
    "crop_images": lambda o, x: o.image.crop_images(x, 1, 1, target_height=5, target_width=6),
    "elastic_transform": lambda o, x: o.image.elastic_transform(x, seed=1),
    "extract_patches": lambda o, x: o.image.extract_patches(x, (2, 2)),
    "extract_patches_3d": lambda o, x: o.image.extract_patches_3d(o.reshape(x, (1, 4, 4, 4, 4)), (2, 2, 2)),
    "gaussian_blur": lambda o, x: o.image.gaussian_blur(x),
    "hsv_to_rgb": lambda o, x: o.image.hsv_to_rgb(x[..., :3] / 2.0),
    "rgb_to_hsv": lambda o, x: o.image.rgb_to_hsv(x[..., :3] / 2.0),
    "rgb_to_grayscale": lambda o, x: o.image.rgb_to_grayscale(x[..., :3]),
    "map_coordinates": lambda o, x: o.image.map_coordinates(x[0, ..., 0], np.full((2, 5), 2.5, "float32"), 1),
    "pad_images": lambda o, x: o.image.pad_images(x, 1, 2, 0, 1),
    "perspective_transform": lambda o, x: o.image.perspective_transform(x, CORNERS, CORNERS * 0.8),
    "scale_and_translate": lambda o, x: o.image.scale_and_translate(
        x, (1, 8, 8, 4), np.array([1.2, 1.1], "float32"), np.array([0.5, 0.0], "float32"), (1, 2), "linear"
    ),
    "sobel_edges": lambda o, x: o.image.sobel_edges(x),
    "ssim": lambda o, x: o.image.ssim(x, o.tanh(x), 2.0, 5),
}

_CONSTANT = "makes a constant when the model is built: no op is left of it"
_PYTHON = "answers in Python, about a tensor: no op"
_NO_GRAPH = "Keras 3.15 itself cannot run it in a graph with TensorFlow"
# The functions that have no corpus model, and why.
LEFT_OUT = {
    **dict.fromkeys(
        [
            "arange",
            "array",
            "bartlett",
            "blackman",
            "empty",
            "eye",
            "full",
            "geomspace",
            "hamming",
            "hanning",
            "kaiser",
        ],
        _CONSTANT,
    ),
    **dict.fromkeys(["linspace", "logspace", "ones", "zeros", "convert_to_tensor"], _CONSTANT),
    **dict.fromkeys(["convert_to_numpy", "dtype", "is_tensor", "ndim", "shape", "size"], _PYTHON),
    **dict.fromkeys(
        [
            "argpartition",
            "cond",
            "corrcoef",
            "histogram",
            "isin",
            "kron",
            "lu_factor",
            "nanmedian",
            "nanpercentile",
            "nanquantile",
        ],
        _NO_GRAPH,
    ),
    **dict.fromkeys(["ctc_loss", "vectorize", "view_as_complex", "view_as_real"], _NO_GRAPH),
    "view": "reads the bits of a float as an integer",
    "conv_transpose": "as the layer Conv2DTranspose: Keras 3.15 cannot trace the function",
    "nonzero": "its output has another shape for each sample",
    **dict.fromkeys(["custom_gradient", "jvp"], "about derivatives, for training"),
}


def models() -> list[CorpusModel]:
    """Return the models of operations, each with the name `ops.<function>` or `ops.<function>_<variant>`."""
    older = {name: call for calls in (INT8, FLOAT, NO_TFLITE) for name, (call, _) in calls.items()}
    groups = (ARITHMETIC, CONDITIONS, REDUCTIONS, SHAPES, PRODUCTS)
    calls_by_name = older | {name: call for calls in groups for name, call in calls.items()}
    calls_by_name |= INSTEAD
    calls_by_name |= {name: of_integers(call) for name, call in INTEGERS.items()}
    calls_by_name |= {f"image.{name}": call for name, call in IMAGES.items()}
    return [CorpusModel(name=f"ops.{name}", build=built(call)) for name, call in calls_by_name.items()]


def of_integers(call: Call) -> Call:
    return lambda o, x: call(o, o.cast(3.0 * x, "int32"))


def built(call: Call) -> Callable[[], tuple[Any, Any]]:
    return lambda: functional({"x": stepped()}, lambda x: call(import_keras().ops, x))


def stepped() -> np.ndarray:
    """Return images of odd multiples of 1/16: no value is near a multiple of 1/8, where the operations here jump."""
    return (np.floor(smooth(SHAPE, 0.15, 1.85) * 8) / 8 + 1 / 16).astype(np.float32)


def covered(public: set[str]) -> set[str]:
    """Return the functions that a model is named after, and those that the models call."""
    tables = (INT8, FLOAT, NO_TFLITE, INSTEAD, ARITHMETIC, CONDITIONS, REDUCTIONS, SHAPES, PRODUCTS, INTEGERS, IMAGES)
    calls = [call[0] if isinstance(call, tuple) else call for table in tables for call in table.values()]
    named = {name for call in calls for name in call.__code__.co_names} | {name for table in tables for name in table}
    return (named | {f"image.{name}" for name in named}) & public - set(LEFT_OUT)
