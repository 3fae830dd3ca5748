# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a family depend on. No TensorFlow, because the script that starts the children also reads it."""

from dataclasses import dataclass, field

FAMILY_NAMES = (
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "VGG16", "ResNet50", "ResNet50V2",
    "DenseNet121", "Xception", "InceptionV3", "InceptionResNetV2", "NASNetMobile", "EfficientNetB0",
    "EfficientNetV2B0", "ConvNeXtTiny",
)  # fmt: skip

# Sorted by the number of parameters.
SMALLEST = ("MobileNetV3Small", "MobileNetV2", "MobileNetV3Large", "MobileNet")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a measurement; results of other settings are not reused."""

    size: int = field(
        default=64, metadata={"help": "height and width of the images; a family that needs more gets its least"}
    )
    train_steps: int = field(default=80, metadata={"help": "steps of the float training"})
    tune_steps: int = field(default=80, metadata={"help": "steps of pruning, and as many of QAT"})
    data: str = field(default="digits", metadata={"help": "images of at most 10 classes: any source of tfq's --data"})
    limit: int = field(default=256, metadata={"help": "test images: for the accuracies and the comparison"})
