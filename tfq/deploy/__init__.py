# SPDX-License-Identifier: Apache-2.0
"""App bundles: a `.tflite` with metadata, io.json, golden vectors, and sources that run it on a platform."""

from tfq.deploy.bundle import Bundle, chosen_platforms, export_bundle
from tfq.deploy.golden import GoldenVectors
from tfq.deploy.platform import BundleContents, Candidate, Platform, Problem, SelfTest, SelfTestResult

__all__ = [
    "Bundle",
    "BundleContents",
    "Candidate",
    "GoldenVectors",
    "Platform",
    "Problem",
    "SelfTest",
    "SelfTestResult",
    "chosen_platforms",
    "export_bundle",
]
