// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

#ifdef TFLM_NAMESPACE_MICRO
namespace tflite {
namespace micro {
#endif

struct TfLiteTensor {
  union {
    char* raw;
  } data;
  size_t bytes;
};

#ifndef TFLM_NAMESPACE_MICRO
namespace tflite {
#endif

class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& resolver, uint8_t* arena, size_t arena_size);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(size_t index);
  TfLiteTensor* output(size_t index);
  size_t arena_used_bytes() const;
};

#ifdef TFLM_NAMESPACE_MICRO
}  // namespace micro
#endif
}  // namespace tflite
