// tfq:begin header
// A self-test on golden vectors for TensorFlow Lite Micro.
// tfq:end header
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "arena.h"
#include "golden_data.h"
#include "model_data.h"
#include "op_resolver.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {

// See op_resolver.h.
using namespace tflite;
using namespace tflite::micro;

alignas(16) uint8_t arena[MODEL_ARENA_BYTES];

template <typename T>
double LargestDifference(const void* values, const void* expected, size_t size) {
  double largest = 0;
  for (size_t start = 0; start < size; start += sizeof(T)) {
    T value, other;
    std::memcpy(&value, static_cast<const char*>(values) + start, sizeof(T));
    std::memcpy(&other, static_cast<const char*>(expected) + start, sizeof(T));
    if (value == other) continue;  // also if both are infinite
    const double difference = std::fabs(static_cast<double>(value) - static_cast<double>(other));
    // NaN is a difference, too.
    if (!(difference <= largest)) largest = std::isnan(difference) ? HUGE_VAL : difference;
  }
  return largest;
}

double LargestDifference(const golden::Vector& vector, const void* values) {
  switch (vector.type) {
    case golden::Type::kFloat32:
      return LargestDifference<float>(values, vector.bytes, vector.size);
    case golden::Type::kInt8:
      return LargestDifference<int8_t>(values, vector.bytes, vector.size);
    case golden::Type::kUint8:
      return LargestDifference<uint8_t>(values, vector.bytes, vector.size);
    case golden::Type::kInt16:
      return LargestDifference<int16_t>(values, vector.bytes, vector.size);
    case golden::Type::kOther:
      break;
  }
  return std::memcmp(values, vector.bytes, vector.size) == 0 ? 0 : HUGE_VAL;
}

}  // namespace

// Runs the model on the golden vectors, and prints the result. Returns 0 if all are reproduced.
int main() {
  static model::OpResolver resolver;
  if (!model::AddOps(resolver)) {
    std::printf("FAILED: the op resolver is too small\n");
    return 1;
  }
  static MicroInterpreter interpreter(GetModel(g_model_data), resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    std::printf("FAILED: the arena of %u bytes is too small\n", static_cast<unsigned>(sizeof(arena)));
    return 1;
  }
  std::printf("arena: %u of %u bytes\n", static_cast<unsigned>(interpreter.arena_used_bytes()),
              static_cast<unsigned>(sizeof(arena)));
  bool passed = true;
  for (size_t example = 0; example < golden::kExamples; ++example) {
    for (size_t i = 0; i < golden::kInputs; ++i) {
      const golden::Vector& vector = golden::kInput[example][i];
      std::memcpy(interpreter.input(i)->data.raw, vector.bytes, vector.size);
    }
    if (interpreter.Invoke() != kTfLiteOk) {
      std::printf("FAILED: golden vector %u does not run\n", static_cast<unsigned>(example));
      return 1;
    }
    for (size_t i = 0; i < golden::kOutputs; ++i) {
      const golden::Vector& vector = golden::kOutput[example][i];
      const double difference = LargestDifference(vector, interpreter.output(i)->data.raw);
      const bool is_right = difference <= vector.tolerance;
      passed = passed && is_right;
      std::printf("golden vector %u, output %u: difference %g, %s\n", static_cast<unsigned>(example),
                  static_cast<unsigned>(i), difference, is_right ? "right" : "WRONG");
    }
  }
  std::printf(passed ? "PASSED\n" : "FAILED\n");
  return passed ? 0 : 1;
}
