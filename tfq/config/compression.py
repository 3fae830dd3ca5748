# SPDX-License-Identifier: Apache-2.0
"""What is done to the model before conversion."""

from dataclasses import dataclass

from tfq.config.base import Config, section, setting


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A plain training loop: Adam on cross-entropy."""

    epochs: int = setting(10, "passes over the training split", minimum=1)
    batch_size: int = setting(32, "examples a step", minimum=1)
    learning_rate: float = setting(1e-3, "Adam's initial step size, decayed to 0 along a cosine", minimum=0)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainConfig):
    """Training of a model that has no weights yet."""

    keras: str = setting(
        "tf_keras", "which Keras builds the model; pruning and QAT take tf_keras", choices=("tf_keras", "keras")
    )


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Config):
    """Training towards the outputs of the float model beside the labels."""

    enabled: bool = setting(False, "learn from the float model's outputs as well", names_section=True)
    temperature: float = setting(4.0, "both models' logits are divided by it", minimum=0.1)
    weight: float = setting(0.5, "share of the loss that is towards the float model", minimum=0, maximum=1)
    layers: tuple[str, ...] = setting(
        (),
        "name patterns of layers whose outputs are drawn towards the float model's as well, such as the ends of blocks",
    )
    layers_weight: float = setting(1.0, "weight of these layers' distances beside the loss", minimum=0)


@dataclass(frozen=True, kw_only=True)
class PruneConfig(Config):
    """Magnitude pruning of weights with tfmot."""

    enabled: bool = setting(True, "prune the weights", names_section=True)
    schedule: str = setting("polynomial", "how the sparsity grows", choices=("polynomial", "constant"))
    initial_sparsity: float = setting(0.0, "fraction of zeros at begin_step (polynomial)", minimum=0, maximum=0.99)
    final_sparsity: float = setting(0.5, "fraction of zeros from end_step on", minimum=0, maximum=0.99)
    begin_step: int = setting(0, "first training step that prunes", minimum=0)
    end_step: int = setting(-1, "step that reaches final_sparsity; -1 is three quarters of the training", minimum=-1)
    frequency: int = setting(10, "steps between two updates of the masks", minimum=1)
    layers: tuple[str, ...] = setting(("*",), "name patterns of the layers to prune, of those that can be")
    targets: tuple[str, ...] = setting(
        (), "PATTERN=SPARSITY: layers with a final_sparsity of their own; the last pattern that fits a layer counts"
    )
    allocation: str = setting(
        "uniform",
        "uniform: final_sparsity in every layer; of the others, over all of them: lamp: by the sizes of weights, erk: "
        "by the shapes of layers (both: more in large layers than in small ones), sensitivity: by data",
        choices=("uniform", "lamp", "erk", "sensitivity"),
    )
    sparsity_m_by_n: tuple[int, ...] = setting((), "m,n: m zeros in every n weights in a row (2,4)", minimum=1)
    block_size: tuple[int, ...] = setting((), "height,width of blocks of a kernel that become zero as one", minimum=1)
    distillation: DistillationConfig = section(DistillationConfig, "learning from the model before it was pruned")


@dataclass(frozen=True, kw_only=True)
class StructuredPruningConfig(Config):
    """Pruning of whole filters, which are taken out of the model: it becomes smaller and faster."""

    enabled: bool = setting(False, "take whole filters out, before all other compression", names_section=True)
    target_macs: float = setting(0.5, "share of the multiply-adds that stays", minimum=0.01, maximum=1)
    norm: str = setting("l1", "norm by which filters are ranked: the smallest go", choices=("l1", "l2"))
    channel_multiple: int = setting(8, "channels are left in multiples of this, where there are as many", minimum=1)
    layers: tuple[str, ...] = setting(("*",), "name patterns of the layers that may lose filters")
    targets: tuple[str, ...] = setting(
        (), "PATTERN=SHARE: layers of whose filters that share stays; the others lose what target_macs asks for beyond"
    )
    refit_examples: int = setting(
        256, "training examples by which the layers behind removed filters are refit; 0 leaves them", minimum=0
    )
    distillation: DistillationConfig = section(
        DistillationConfig, "learning from the model that the filters were taken out of"
    )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Config):
    """Clustering of weights: each layer has a few values, and the compressed file is smaller."""

    enabled: bool = setting(False, "cluster the weights, after pruning", names_section=True)
    number_of_clusters: int = setting(
        16, "codes that the weights of a layer have in the int8 flatbuffer", minimum=3, maximum=64
    )
    layers: tuple[str, ...] = setting(("*",), "name patterns of the layers to cluster, of those that can be")
    end_step: int = setting(
        -1, "training step from which weights stay in their cluster; -1 is half of the training", minimum=-1
    )
    distillation: DistillationConfig = section(DistillationConfig, "learning from the model before it was clustered")


@dataclass(frozen=True, kw_only=True)
class QATConfig(Config):
    """Quantization-aware training with tfmot's default 8-bit scheme."""

    enabled: bool = setting(True, "quantization-aware train", names_section=True)
    preserve_sparsity: bool = setting(True, "keep the zeros of a pruned model at zero")
    preserve_clusters: bool = setting(True, "keep each weight of a clustered model in its cluster")
    layers: tuple[str, ...] = setting(
        ("*",), "name patterns of the layers to train with fake quantization; the converter quantizes the others"
    )
    num_calibration_samples: int = setting(
        200, "training examples whose ranges the activations start with; 0 starts with the first batch's", minimum=0
    )
    range_estimator: str = setting(
        "ema",
        "where activations are clipped: ema: exponential moving averages of what is seen; lsq: learned with the "
        "weights (learned step size)",
        choices=("ema", "lsq"),
    )
    freeze_batch_norm_step: int = setting(
        -1,
        "training step that freezes the statistics of BatchNormalization; -1 is nine tenths of the training",
        minimum=-1,
    )
    distillation: DistillationConfig = section(DistillationConfig, "learning from the float model")


@dataclass(frozen=True, kw_only=True)
class CompressionConfig(Config):
    """What is done to the tf_keras model before conversion."""

    structured_pruning: StructuredPruningConfig = section(StructuredPruningConfig, "pruning of whole filters")
    prune: PruneConfig = section(PruneConfig, "magnitude pruning")
    cluster: ClusterConfig = section(ClusterConfig, "clustering of weights")
    qat: QATConfig = section(QATConfig, "quantization-aware training")
    train: TrainConfig = section(TrainConfig, "the fine-tuning of each of these steps")
