# SPDX-License-Identifier: Apache-2.0
"""Your own model and your own photographs: convert to int8, audit, compare with the float model.

    python examples/photos_to_int8.py --model=model.keras --photos=photos --scale=0.00392157 --out=model_int8.tflite

photos/train/CLASS/*.jpg calibrates and photos/test/CLASS/*.jpg is evaluated. A few seconds for a small model; it exits
with 1 if the int8 model predicts another class than the float model for more than 2% of the test photographs.
"""

import sys
from pathlib import Path

from absl import app, flags

import tfq

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "model.keras", "the Keras model")
flags.DEFINE_string("photos", "photos", "folder with train/CLASS and test/CLASS")
flags.DEFINE_list("resize", [], "height,width that the model expects, if the photographs have another size")
flags.DEFINE_float("scale", 1 / 255, "multiplies each pixel (0 to 255); 1 for a model with a Rescaling layer")
flags.DEFINE_float("offset", 0.0, "added after --scale")
flags.DEFINE_string("out", "model_int8.tflite", "the file to write")


def convert_photos() -> None:
    data = tfq.DataConfig(
        source=f"folder:{FLAGS.photos}",
        resize=tuple(int(side) for side in FLAGS.resize),
        scale=FLAGS.scale,
        offset=FLAGS.offset,
    )
    train, test = tfq.load_split(data, "train"), tfq.load_split(data, "test")
    model = tfq.load_model(FLAGS.model)
    float32 = tfq.convert(model, config=tfq.ConversionConfig(scheme="float32"))
    # strict: an output that lost its information is an error here, and a warning otherwise.
    int8 = tfq.convert(model, train, tfq.ConversionConfig(strict=True))

    audit = tfq.audit(int8, tfq.AuditConfig(require="full_int8"))
    result = tfq.evaluate(int8, test, reference=float32)
    print(audit.to_text())
    print(result.to_text())
    if not audit.ok or result.agreement is None or result.agreement < 0.98:
        sys.exit("the int8 model is not good enough: see docs/debugging_accuracy.md")
    Path(FLAGS.out).write_bytes(int8)
    print(
        f"wrote {FLAGS.out}: {len(int8):,} bytes, accuracy {result.accuracy:.1%}, float {result.reference_accuracy:.1%}"
    )


def main(arguments: list[str]) -> None:
    del arguments
    try:
        convert_photos()
    except tfq.TfqError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    app.run(main)
