// SPDX-License-Identifier: Apache-2.0
#pragma once

#ifdef TFLM_NAMESPACE_MICRO
namespace tflite {
namespace micro {
#endif

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

#ifndef TFLM_NAMESPACE_MICRO
namespace tflite {
#endif

class MicroOpResolver {};

template <unsigned int tOpCount>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
#define OP(name) \
  TfLiteStatus Add##name() { return ++count_ > tOpCount ? kTfLiteError : kTfLiteOk; }
#include "ops.inc"
#undef OP

 private:
  unsigned int count_ = 0;
};

#ifdef TFLM_NAMESPACE_MICRO
}  // namespace micro
#endif
}  // namespace tflite
