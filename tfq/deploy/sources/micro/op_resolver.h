// tfq:begin header
// The ops of a model for TensorFlow Lite Micro.
// tfq:end header
#ifndef OP_RESOLVER_H_
#define OP_RESOLVER_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace tflite {
namespace micro {}
}  // namespace tflite

namespace model {

// In October 2026, the classes of TensorFlow Lite Micro moved from tflite to tflite::micro. This finds them in both.
using namespace tflite;
using namespace tflite::micro;

// tfq:begin ops
// The 1 op of the model.
using OpResolver = MicroMutableOpResolver<1>;

// Adds the ops to the resolver. Returns false if one is refused.
inline bool AddOps(OpResolver& resolver) {
  return resolver.AddFullyConnected() == kTfLiteOk;
}
// tfq:end ops

}  // namespace model

#endif  // OP_RESOLVER_H_
