// tfq:begin header
// Golden vectors for the self-test in main.cc.
// tfq:end header
#ifndef GOLDEN_DATA_H_
#define GOLDEN_DATA_H_

#include <cstddef>
#include <cstdint>

namespace golden {

enum class Type { kFloat32, kInt8, kUint8, kInt16, kOther };

// The bytes of an input, or those that an output must have. `tolerance` is the largest difference that is right, in
// quantized values, or in real ones for floats.
struct Vector {
  const uint8_t* bytes;
  size_t size;
  Type type;
  float tolerance;
};

// tfq:begin vectors
constexpr size_t kExamples = 1;
constexpr size_t kInputs = 1;
constexpr size_t kOutputs = 1;
alignas(8) inline constexpr uint8_t k0Input0[] = {0};
alignas(8) inline constexpr uint8_t k0Output0[] = {0};
inline constexpr Vector kInput[kExamples][kInputs] = {{{k0Input0, sizeof(k0Input0), Type::kInt8, 0.0f}}};
inline constexpr Vector kOutput[kExamples][kOutputs] = {{{k0Output0, sizeof(k0Output0), Type::kInt8, 1.0f}}};
// tfq:end vectors

}  // namespace golden

#endif  // GOLDEN_DATA_H_
