# SPDX-License-Identifier: Apache-2.0
"""Custom objects of a saved model: the names that Keras provides, and where all others come from.

The names are an allow-list, because a list of dangerous names is never complete. They were read in keras 3.15.1 and
tf_keras 2.21.0. A test compares the list with what both packages export, so that somebody decides about each new class.
"""

import inspect
import re
from types import ModuleType

from tfq import registry
from tfq.errors import InputError, warn

# Classes of keras.layers whose config names code, or a file to run or to read. Name -> the reason of the refusal.
REFUSED_CLASSES = {
    "Lambda": "a Lambda layer runs Python code that the file contains or names",
    "TFSMLayer": "it runs a SavedModel from a path that the file names",
    "TorchModuleWrapper": "it unpickles a PyTorch module",
    "JaxLayer": "it runs Python functions that the file contains",
    "FlaxLayer": "it runs Python functions that the file contains",
    "TensorFlowOpLayer": "it runs any TensorFlow op that the file describes",
    "ClassMethod": "it calls any method of a TensorFlow class that the file names",
    "InstanceMethod": "it calls any method that the file names",
    "InstanceProperty": "it reads any attribute that the file names",
    "DenseFeatures": "its feature columns may contain Python functions",
}

# TFOpLambda and SlicingOpLambda call a TensorFlow function by its name. Only arithmetic is allowed: the name could also
# be `io.write_file`.
TF_FUNCTION_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda"})
TF_FUNCTIONS = re.compile(
    r"(compat\.v1\.)?("
    r"(__operators__|math|nn|linalg|image)\.[a-z0-9_.]+"
    r"|keras\.activations\.[a-z0-9_]+"
    r"|cast|reshape|concat|stack|unstack|split|transpose|expand_dims|squeeze|tile|pad|shape|size|rank|gather|gather_nd"
    r"|where|identity|zeros_like|ones_like|zeros|ones|fill|range|clip_by_value|slice|strided_slice|broadcast_to|one_hot"
    r"|reverse|argmax|argmin|boolean_mask|stop_gradient|einsum|tensordot|cumsum|repeat|roll|space_to_depth"
    r"|depth_to_space|space_to_batch|batch_to_space|convert_to_tensor|constant|eye|searchsorted|minimum|maximum"
    r"|add|subtract|multiply|divide|truediv|abs|exp|sqrt|square|pow|sign|round|tanh|sigmoid|matmul|norm"
    r"|reduce_(sum|mean|max|min|prod|any|all|logsumexp)|(add|accumulate)_n|equal|not_equal|less|greater"
    r"|less_equal|greater_equal|logical_(and|or|not)"
    r")"
)

# Operations of Keras 3's functional graphs: every class in these modules, except those that take functions.
OPERATION_MODULES = re.compile(r"keras\.src\.ops\.(core|einops|image|linalg|math|nn|numpy|operation)")
_REFUSED_OPERATIONS = """
    AssociativeScan Cond CustomGradient ForiLoop Map Scan Switch VectorizedMap Vectorize WhileLoop
"""

REFUSED_OPERATIONS = frozenset(_REFUSED_OPERATIONS.split())

MODELS = frozenset(("Functional", "Model", "Sequential"))

_LAYERS = """
    AbstractRNNCell Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention
    AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D
    AvgPool1D AvgPool2D AvgPool3D BatchNormalization BatchNormalizationV1 BatchNormalizationV2 Bidirectional
    CategoryEncoding CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose
    Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D
    Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D Convolution3DTranspose Cropping1D
    Cropping2D Cropping3D CuDNNGRU CuDNNLSTM CustomScaleLayer CutMix Dense DepthwiseConv1D DepthwiseConv2D
    Discretization Dot Dropout DynamicEmbedding DynamicLookup ELU EinsumDense Embedding Equalization Flatten GRU
    GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention
    GroupedQueryAttention HashedCrossing Hashing Identity InputLayer InputSpec IntegerLookup LSTM LSTMCell Layer
    LayerNormalization LayerScale LeakyReLU LocallyConnected1D LocallyConnected2D Masking MaxNumBoundingBoxes
    MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp
    MultiHeadAttention Multiply Normalization PReLU Permute Pipeline PreprocessingLayer RMSNormalization RNN
    RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomFourierFeatures RandomGaussianBlur RandomGrayscale
    RandomHeight RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation
    RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape
    Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D SeparableConvolution1D
    SeparableConvolution2D SimpleRNN SimpleRNNCell SlicingOpLambda Softmax Solarization SpatialDropout1D
    SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells StochasticDepth StringLookup Subtract
    SyncBatchNormalization TFOpLambda TextVectorization ThresholdedReLU TimeDistributed UnitNormalization
    UpSampling1D UpSampling2D UpSampling3D Wrapper ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""

_SETTINGS = """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer Initializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT STFTInitializer
    TruncatedNormal VarianceScaling Zeros constant glorot_normal glorot_uniform he_normal he_uniform identity
    lecun_normal lecun_uniform ones orthogonal random_normal random_uniform stft truncated_normal
    variance_scaling zeros
    L1 L1L2 L2 OrthogonalRegularizer Regularizer l1 l1_l2 l2 orthogonal_regularizer
    Constraint MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm max_norm min_max_norm non_neg
    radial_constraint unit_norm
    AWQDTypePolicy DTypePolicy DTypePolicyMap FloatDTypePolicy GPTQDTypePolicy Int4DTypePolicy Policy PolicyV1
    QuantizedDTypePolicy QuantizedFloat8DTypePolicy
    AWQConfig AbsMaxQuantizer Float8QuantizationConfig GPTQConfig Int4QuantizationConfig Int8QuantizationConfig
    QuantizationConfig Quantizer
"""

_TRAINING = """
    Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion LossScaleOptimizer MultiOptimizer Muon Nadam
    Optimizer OptimizerMap RMSprop SGD ScheduleFreeAdamW
    CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay LearningRateSchedule PiecewiseConstantDecay
    PolynomialDecay
    BinaryCrossentropy BinaryFocalCrossentropy CTC CategoricalCrossentropy CategoricalFocalCrossentropy
    CategoricalGeneralizedCrossEntropy CategoricalHinge Circle CosineSimilarity Dice Hinge Huber KLDivergence
    LogCosh Loss MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError
    Poisson Reduction SparseCategoricalCrossentropy SquaredHinge Tversky
    AUC Accuracy BinaryAccuracy BinaryIoU CategoricalAccuracy ConcordanceCorrelation F1Score FBetaScore
    FalseNegatives FalsePositives IoU LogCoshError Mean MeanIoU MeanMetricWrapper MeanRelativeError MeanTensor
    Metric OneHotIoU OneHotMeanIoU PearsonCorrelation Precision PrecisionAtRecall R2Score Recall RecallAtPrecision
    RootMeanSquaredError SensitivityAtSpecificity SparseCategoricalAccuracy SparseTopKCategoricalAccuracy
    SpecificityAtSensitivity Sum TopKCategoricalAccuracy TrueNegatives TruePositives
"""

CLASSES = MODELS | frozenset((_LAYERS + _SETTINGS + _TRAINING).split())

_FUNCTIONS = """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear
    log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus
    sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold
    accuracy binary_accuracy binary_crossentropy categorical_accuracy categorical_crossentropy hinge huber kld
    kl_divergence log_cosh logcosh mae mape mse msle mean_absolute_error mean_absolute_percentage_error
    mean_squared_error mean_squared_logarithmic_error poisson sparse_categorical_accuracy
    sparse_categorical_crossentropy squared_hinge
"""

FUNCTIONS = frozenset(_FUNCTIONS.split())

_TFMOT = """
    AllValuesQuantizer ClusterWeights ClusterWeightsMHA ClusterWeightsRNN ConstantSparsity
    Default8BitActivationQuantizeConfig Default8BitConvQuantizeConfig
    Default8BitConvTransposeQuantizeConfig Default8BitOutputQuantizeConfig Default8BitQuantizeConfig
    Default8BitQuantizeConfigRNN FixedQuantizeConfig FixedQuantizer LastValueQuantizer MovingAverageQuantizer
    NoOpActivation NoOpQuantizeConfig NoQuantizer OutputOnlyConfig PruneLowMagnitude QuantizeAnnotate
    QuantizeAwareActivation QuantizeLayer QuantizeWrapper QuantizeWrapperV2
"""

# The classes that tfmot 0.8.1 registers in quantize_scope, prune_scope and cluster_scope: wrappers, quantizers and
# their configs. The other wrappers of clusters, and the pruning schedule whose name Keras does not have, are added.
# These classes contain numbers and names only. The layers that they wrap are inspected separately.
TFMOT_CLASSES = frozenset(_TFMOT.split())

TFMOT_MODULE = re.compile(r"tensorflow_model_optimization(\.[A-Za-z_][A-Za-z0-9_]*)*")

# Options of a layer that are a lower bound of its number of weights.
WEIGHT_SIZES = frozenset(
    {"units", "filters", "kernel_size", "input_dim", "output_dim", "num_heads", "key_dim", "value_dim"}
)

# Class names that Keras gives to plain data in a config.
DATA = frozenset(
    (
        "__tensor__",
        "__numpy__",
        "__bytes__",
        "__keras_tensor__",
        "__ellipsis__",
        "__slice__",
        "__tuple__",
        "TensorShape",
    )
)

KERAS_MODULE = re.compile(r"(tf_)?keras(\.[A-Za-z_][A-Za-z0-9_]*)*")

TABLE = "CUSTOM_OBJECTS"


def custom_objects_of(module: ModuleType, source: str) -> dict[str, object]:
    """Return the classes and functions that a plugin defines for a model file, by name.

    If the module has a dict CUSTOM_OBJECTS, its content is returned. Otherwise every class and function that the module
    defines itself is returned, except names that begin with "_". A name that Keras also has is left out with a
    TfqWarning, because it would replace Keras' own object everywhere; CUSTOM_OBJECTS may contain it. Objects that the
    module registers with `register_keras_serializable` need not be in the result, because Keras finds them.

    Args:
        module: The plugin, already imported.
        source: The plugin's file, for messages.

    Raises:
        InputError: CUSTOM_OBJECTS is not a dict whose keys are names.
    """
    table = getattr(module, TABLE, None)
    if table is not None:
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
            raise InputError(
                f"plugin: expected {TABLE} of {source} to be a dict of names, got a {type(table).__name__}",
                field="plugin",
                expected="a dict",
                got=type(table).__name__,
            )
        return dict(table)
    own = {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    shadows = sorted(name for name in own if name in CLASSES or name in FUNCTIONS)
    if shadows:
        warn(
            f"{source} defines {', '.join(shadows)}, and Keras has the same names: Keras' objects are used. If the "
            f"model contains yours, list them in {source}: {TABLE} = {{{shadows[0]!r}: {shadows[0]}}}"
        )
    return {name: value for name, value in own.items() if name not in shadows}


def custom_objects_of_plugins() -> dict[str, object]:
    """Return the custom objects of all loaded plugins; a later plugin replaces the same name of an earlier one."""
    results: dict[str, object] = {}
    for plugin in registry.plugins():
        results.update(custom_objects_of(plugin.module, plugin.source))
    return results
