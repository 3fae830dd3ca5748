# SPDX-License-Identifier: Apache-2.0
"""Settings of an evaluation on corrupted inputs."""

from dataclasses import dataclass

from tfq.config.base import Config, setting
from tfq.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(Config):
    """Settings of an evaluation on corrupted inputs: which corruptions, how strong, and on how many examples."""

    enabled: bool = setting(
        False,
        "also evaluate on corrupted inputs, and with the mistakes that apps make",
        names_section=True,
    )
    corruptions: tuple[str, ...] = setting(
        (),
        "corruptions to apply; empty applies all that fit the inputs",
        choices_of="corruption",
    )
    severities: tuple[int, ...] = setting((1, 2, 3, 4, 5), "severities of each corruption", minimum=1, maximum=5)
    parameters: str = setting(
        "auto",
        "published parameters of image corruptions: imagenet_c (chosen for 224 pixels), cifar10_c (for 32 pixels) or "
        "auto (cifar10_c for images with sides of at most 64 pixels)",
        choices=("auto", "imagenet_c", "cifar10_c"),
    )
    limit: int = setting(500, "number of examples to corrupt, from the start; 0 is all", minimum=0)
    seed: int = setting(0, "seed of the random numbers of corruptions", minimum=0)
    input_kind: str = setting(
        "auto",
        "what the inputs are: image, signal, or auto (an image if the shape is (height, width, 1 or 3))",
        choices=("auto", "image", "signal"),
    )
    input_range: tuple[float, ...] = setting(
        (),
        "lowest,highest value of the inputs, which are black and white of an image; empty is the narrowest of 0,1, "
        "-1,1 and 0,255 that holds all examples if they use half of it; else an error for images, and for signals "
        "their lowest and highest value",
    )
    degraded_examples: int = setting(
        8,
        "number of examples listed that lose most under corruption; images are stored in the record as small pictures",
        minimum=0,
        maximum=100,
    )

    def __post_init__(self) -> None:
        """Check the range and the severities as well."""
        super().__post_init__()
        name = "evaluation.robustness.input_range"
        if self.input_range and (len(self.input_range) != 2 or self.input_range[0] >= self.input_range[1]):
            raise InputError(
                f"{name} is {list(self.input_range)}: expected two numbers, lowest,highest",
                field=name,
                expected=("lowest", "highest"),
                got=self.input_range,
            )
        if not self.severities:
            name = "evaluation.robustness.severities"
            raise InputError(f"{name} is empty: expected one of 1 to 5", field=name, expected=(1, 2, 3, 4, 5), got=())
