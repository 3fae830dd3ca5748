#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare the schemes of `tfq convert` on one model: accuracy, agreement with float32, sizes, ops that XNNPACK runs.

Weights of 4 and 2 bits are measured by few_bits.py.

    python benchmarks/schemes.py --model=resnet8.h5 '--data=tfrecord:cifar10/cifar10-*' [--limit=0]

The exit code is 1 if a flatbuffer does not have the scheme that it was converted to, or agrees with float32 on less
than 90% of the examples. ResNet8 and 10,000 images take about two minutes, most of it int16x8, which has no XNNPACK
kernels.
"""

import argparse
import os
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfq
from tfq.config import AUDIT_SCHEMES, FEW_BIT_SCHEMES, SCHEMES

MIN_AGREEMENT = 0.9


def cases() -> dict[str, tfq.ConversionConfig]:
    """Return {name of a row: config to convert with}; float32, the reference of the others, comes first."""
    ordered = ("float32", *(scheme for scheme in SCHEMES if scheme != "float32" and scheme not in FEW_BIT_SCHEMES))
    results = {scheme: tfq.ConversionConfig(scheme=scheme) for scheme in ordered}
    return results | {
        "int8, per tensor": tfq.ConversionConfig(per_channel=False),
        "int8, dense per tensor": tfq.ConversionConfig(per_channel_dense=False),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("once", tfq.TfqWarning)
    data = tfq.DataConfig(source=arguments.data)
    test = tfq.load_split(data, "test", limit=arguments.limit)
    samples = tfq.load_split(data, "train", limit=tfq.ConversionConfig().num_calibration_samples)
    traced = tfq.trace(tfq.load_model(arguments.model))
    print("| scheme | accuracy | agreement | bytes | gzip | ops by XNNPACK | audit | weights | dense weights |")
    print("|---|---|---|---|---|---|---|---|---|")
    floating, failed = None, []
    for name, config in cases().items():
        content = tfq.convert(traced, samples if config.needs_ranges else None, config)
        floating = floating or content
        record = tfq.evaluate(content, test, tfq.EvaluationConfig(num_runs=0), reference=floating)
        required = next(required for required, scheme in AUDIT_SCHEMES.items() if scheme == config.scheme)
        report = tfq.audit(content, tfq.AuditConfig(require=required))
        print(
            f"| {name} | {record.accuracy:.2%} | {record.agreement:.2%} | {record.model_bytes:,} | "
            f"{record.gzip_bytes:,} | {record.delegated_ops} of {record.total_ops} | {report.scheme} | "
            f"{report.granularity or '—'} | {report.dense_granularity or '—'} |",
            flush=True,
        )
        if not report.ok or (record.agreement or 0) < MIN_AGREEMENT:
            failed.append(name)
    for name in failed:
        print(f"MISSED: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
