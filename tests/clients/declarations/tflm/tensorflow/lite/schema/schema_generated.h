// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace tflite {
struct Model;
const Model* GetModel(const void* buffer);
}  // namespace tflite
