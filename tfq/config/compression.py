# SPDX-License-Identifier: Apache-2.0
"""Settings of training and compression: pruning, clustering, quantization-aware training, distillation."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting

# Losses of `TrainConfig.loss` -> the labels that they compare with: class numbers; rows of class probabilities; yes or
# no for each unit; or values of the output's shape.
LOSSES = {
    "sparse_categorical_crossentropy": "classes",
    "categorical_crossentropy": "rows",
    "categorical_focal_crossentropy": "rows",
    "binary_crossentropy": "units",
    "binary_focal_crossentropy": "units",
    "mean_squared_error": "values",
    "mean_absolute_error": "values",
    "mean_absolute_percentage_error": "values",
    "mean_squared_logarithmic_error": "values",
    "huber": "values",
    "log_cosh": "values",
    "poisson": "values",
    "cosine_similarity": "values",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Settings of a training loop: Adam on the loss of each output."""

    epochs: int = setting(10, "passes over the training split", minimum=1)
    batch_size: int = setting(32, "examples per training step", minimum=1)
    learning_rate: float = setting(1e-3, "initial learning rate of Adam; it decays to 0 along a cosine", minimum=0)
    loss: tuple[str, ...] = setting(
        (),
        "loss of all outputs, or OUTPUT=LOSS for one; OUTPUT=none leaves an output out. Other outputs get the loss "
        "that their labels fit: a cross-entropy for class numbers, one-hot rows and yes/no labels of a sigmoid, "
        "mean_squared_error for values",
        choices=(*LOSSES, "none"),
        keyed=True,
    )
    loss_weights: tuple[str, ...] = setting(
        (), "OUTPUT=FACTOR: factor of an output's loss in the sum of all losses; 1 for other outputs"
    )
    strategy: str = setting(
        "none",
        "tf.distribute strategy: none (one device), or mirrored (all GPUs of this machine, which share each batch)",
        choices=("none", "mirrored"),
    )
    dtype_policy: str = setting(
        "float32",
        "dtype policy of the training: float32, mixed_float16 (with loss scaling; for NVIDIA GPUs) or mixed_bfloat16 "
        "(for TPUs and new CPUs); weights stay float32, and quantization-aware training computes in float32",
        choices=("float32", "mixed_float16", "mixed_bfloat16"),
    )
    teacher_cache_mb: int = setting(
        512,
        "megabytes of memory for the outputs of a teacher or of the model before a step, which are then computed once "
        "for each example; larger ones are computed in every epoch, and 0 computes all in every epoch",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Config):
    """Settings of distillation from other models: training towards their outputs in addition to the labels."""

    files: tuple[str, ...] = setting(
        (),
        "Keras model to learn from, of any architecture with the same inputs and outputs; several are an ensemble, "
        "whose mean distance counts",
        repeatable=True,
        path_of="model",
        names_section=True,
    )
    scale: tuple[float, ...] = setting(
        (1.0,),
        "factor of the teachers' inputs: they receive x * scale + offset, where x is the student's preprocessed input; "
        "one for all teachers, or one for each in their order",
    )
    offset: tuple[float, ...] = setting(
        (0.0,), "added to the teachers' inputs after scaling; one for all teachers, or one for each in their order"
    )
    temperature: float = setting(4.0, "divides the logits of student and teachers", minimum=0.1)
    weight: float = setting(
        0.5,
        "weight of the distance to the teachers' outputs in the loss; the labels have the rest",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainConfig):
    """Settings of training a model that tfq builds by name."""

    teacher: TeacherConfig = section(TeacherConfig, "distillation from other models")

    keras: str = setting(
        "tf_keras",
        "Keras version that builds the model: tf_keras (needed for pruning and QAT) or keras (Keras 3)",
        choices=("tf_keras", "keras"),
    )


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Config):
    """Settings of distillation: training towards the float model's outputs in addition to the labels."""

    enabled: bool = setting(False, "also train towards the float model's outputs", names_section=True)
    temperature: float = setting(4.0, "divides the logits of both models", minimum=0.1)
    weight: float = setting(
        0.5,
        "weight of the distance to the float model's outputs in the loss; the labels have the rest",
        minimum=0,
        maximum=1,
    )
    layers: tuple[str, ...] = setting(
        (),
        "name patterns of layers whose outputs are also trained towards the float model's, such as the last layers "
        "of blocks",
    )
    layers_weight: float = setting(1.0, "weight of the distances of `layers`, added to the loss", minimum=0)


@dataclass(frozen=True, kw_only=True)
class PruneConfig(Config):
    """Settings of magnitude pruning: the smallest weights become zero."""

    enabled: bool = setting(True, "prune the weights", names_section=True)
    schedule: str = setting(
        "polynomial",
        "how the sparsity grows: polynomial (from initial_sparsity at begin_step to final_sparsity at end_step) or "
        "constant (final_sparsity from begin_step on)",
        choices=("polynomial", "constant"),
    )
    initial_sparsity: float = setting(
        0.0, "fraction of zeros at begin_step (polynomial schedule)", minimum=0, maximum=0.99
    )
    final_sparsity: float = setting(0.5, "fraction of zeros at the end", minimum=0, maximum=0.99)
    begin_step: int = setting(0, "first training step that prunes", minimum=0)
    end_step: int = setting(
        -1, "training step that reaches final_sparsity; -1 is three quarters of the training", minimum=-1
    )
    frequency: int = setting(10, "training steps between two updates of the masks", minimum=1)
    layers: tuple[str, ...] = setting(
        ("*",), "name patterns of the layers to prune; layers that cannot be pruned are skipped"
    )
    targets: tuple[str, ...] = setting(
        (), "PATTERN=SPARSITY: final sparsity of the layers that match; the last matching pattern applies"
    )
    allocation: str = setting(
        "uniform",
        "how final_sparsity is distributed over the layers: uniform (the same in every layer), lamp (by the "
        "magnitudes of weights), erk (by the shapes of layers) or sensitivity (by the effect of pruning on "
        "calibration data); lamp and erk prune large layers more",
        choices=("uniform", "lamp", "erk", "sensitivity"),
    )
    criterion: str = setting(
        "magnitude", "which weights are pruned: the least important by", choices_of="pruning_criterion"
    )
    criterion_examples: int = setting(
        512, "training examples from which a criterion other than magnitude is computed", minimum=16
    )
    sparsity_m_by_n: tuple[int, ...] = setting(
        (), "m,n: prune m of every n consecutive weights, such as 2,4", minimum=1
    )
    block_size: tuple[int, ...] = setting(
        (),
        "height,width: prune blocks of this many inputs and outputs; 0 is all of them: 0,1 prunes columns (filters), "
        "and 1,0 rows",
        minimum=0,
    )
    distillation: DistillationConfig = section(DistillationConfig, "distillation from the model before pruning")


@dataclass(frozen=True, kw_only=True)
class StructuredPruningConfig(Config):
    """Settings of structured pruning: removes whole filters, which makes the model smaller and faster."""

    enabled: bool = setting(False, "remove whole filters, before all other compression", names_section=True)
    cost: str = setting("macs", "what is limited", choices_of="channel_cost")
    target_cost: float = setting(0.5, "fraction of the cost that remains", minimum=0.01, maximum=1)
    criterion: str = setting(
        "magnitude", "which filters are removed: the least important by", choices_of="pruning_criterion"
    )
    criterion_examples: int = setting(
        512, "training examples from which a criterion other than magnitude is computed", minimum=16
    )
    norm: str = setting("l1", "norm of the filters that criterion=magnitude compares: l1 or l2", choices=("l1", "l2"))
    channel_multiple: int = setting(
        8, "keep a multiple of this number of channels in layers that have at least as many", minimum=1
    )
    branches: tuple[str, ...] = setting(
        (),
        "name patterns of residual sums (Add layers with two inputs) that lose their branch before filters are "
        "selected; the sum becomes its other input, and target_cost counts what this saves",
    )
    layers: tuple[str, ...] = setting(("*",), "name patterns of the layers that may lose filters")
    targets: tuple[str, ...] = setting(
        (),
        "PATTERN=FRACTION: fraction of the filters that the matching layers keep; the others lose what target_cost "
        "requires in addition",
    )
    refit_examples: int = setting(
        256,
        "training examples on which the layers after removed filters are refit by least squares; 0 skips it",
        minimum=0,
    )
    distillation: DistillationConfig = section(
        DistillationConfig, "distillation from the model before structured pruning"
    )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Config):
    """Settings of weight clustering: each layer has few distinct values, so the file compresses better."""

    enabled: bool = setting(False, "cluster the weights, after pruning", names_section=True)
    number_of_clusters: int = setting(
        16, "number of distinct quantized values of a layer's weights in the int8 flatbuffer", minimum=3, maximum=64
    )
    layers: tuple[str, ...] = setting(
        ("*",), "name patterns of the layers to cluster; layers that cannot be clustered are skipped"
    )
    end_step: int = setting(
        -1, "training step from which weights stay in their cluster; -1 is half of the training", minimum=-1
    )
    distillation: DistillationConfig = section(DistillationConfig, "distillation from the model before clustering")


@dataclass(frozen=True, kw_only=True)
class QATConfig(Config):
    """Settings of quantization-aware training: 8 bits, and weights of 4 bits for `int4_layers`."""

    enabled: bool = setting(True, "train with fake quantization", names_section=True)
    preserve_sparsity: bool = setting(True, "keep the zeros of a pruned model at zero")
    preserve_clusters: bool = setting(True, "keep each weight of a clustered model in its cluster")
    layers: tuple[str, ...] = setting(
        ("*",),
        "name patterns of the layers to train with fake quantization; '!head' excludes a layer; the converter "
        "quantizes the others",
    )
    num_calibration_samples: int = setting(
        200, "training examples that determine the initial activation ranges; 0 uses the first batch", minimum=0
    )
    int4_layers: tuple[str, ...] = setting(
        (),
        "name patterns of convolutions, depthwise convolutions and dense layers whose weights are trained with 4 bits "
        "and learned steps (learned step size quantization); '*' is all, '!head' all but one; the file is smaller, but "
        "not faster",
    )
    range_estimator: str = setting(
        "ema",
        "how activation ranges are determined: ema (exponential moving average of the observed ranges) or lsq "
        "(learned with the weights, learned step size quantization; they start at the percentile of post-training "
        "quantization)",
        choices=("ema", "lsq"),
    )
    freeze_batch_norm_step: int = setting(
        -1,
        "training step from which the statistics of BatchNormalization are frozen; -1 is nine tenths of the training",
        minimum=-1,
    )
    distillation: DistillationConfig = section(DistillationConfig, "distillation from the float model")


@dataclass(frozen=True, kw_only=True)
class CompressionConfig(Config):
    """Settings of all compression steps of a tf_keras model, in the order in which they run."""

    structured_pruning: StructuredPruningConfig = section(
        StructuredPruningConfig, "structured pruning: removal of whole filters"
    )
    prune: PruneConfig = section(PruneConfig, "magnitude pruning of weights")
    cluster: ClusterConfig = section(ClusterConfig, "clustering of weights")
    qat: QATConfig = section(QATConfig, "quantization-aware training")
    teacher: TeacherConfig = section(
        TeacherConfig, "distillation of all steps from other models, instead of from the model before the step"
    )
    train: TrainConfig = section(TrainConfig, "training after each of these steps")
