# SPDX-License-Identifier: Apache-2.0
"""Write corruptions.npz: images corrupted by the package imagecorruptions, with the seed of every random draw.

    python -m venv env
    env/bin/pip install 'imagecorruptions==1.1.2' 'numpy<2' 'scikit-image==0.20.*' setuptools
    env/bin/python tests/golden/make_corruptions.py tests/golden/corruptions.npz

The arrays are `image_K` and `NAME_SEVERITY_K`. Every call starts from numpy.random.seed(SEED); impulse noise draws from
numpy.random.default_rng(SEED), which scikit-image is given here.
"""

import sys
import warnings

import numpy as np

SEED = 7
NAMES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "motion_blur",
    "gaussian_blur",
    "fog",
    "brightness",
    "contrast",
    "jpeg_compression",
    "pixelate",
)
# Height and width of the images, and the severities of each: the package accepts sides of at least 32.
IMAGES = (((32, 32), (1, 2, 3, 4, 5)), ((34, 45), (1, 5)))


def scene(height: int, width: int) -> np.ndarray:
    """Return a picture (height, width, 3) with smooth parts, edges, black, white and texture."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 255 / height, columns * 255 / width, 128 + 100 * np.sin(rows / 3 + columns / 5)], axis=2)
    image[4:12, 5:15] = (230, 40, 25)
    image[18:24, 10:26] = np.random.default_rng(1).integers(0, 256, (6, 16, 3))
    image[26:30, 2:8], image[26:30, 8:14] = 0, 255
    return image.astype(np.uint8)


def main() -> None:
    import imagecorruptions
    from imagecorruptions import corruptions

    original = corruptions.sk.util.random_noise
    corruptions.sk.util.random_noise = lambda *arguments, **options: original(*arguments, seed=SEED, **options)
    blur = corruptions.gaussian  # the argument has been renamed since the package was written
    corruptions.gaussian = lambda image, sigma, multichannel: blur(image, sigma=sigma, channel_axis=-1)
    warnings.simplefilter("ignore")
    arrays = {}
    for index, (size, severities) in enumerate(IMAGES):
        arrays[f"image_{index}"] = scene(*size)
        for name in NAMES:
            for severity in severities:
                np.random.seed(SEED)  # noqa: NPY002  the package draws from it
                result = imagecorruptions.corrupt(scene(*size), severity=severity, corruption_name=name)
                arrays[f"{name}_{severity}_{index}"] = result
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
