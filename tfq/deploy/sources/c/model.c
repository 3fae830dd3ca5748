#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "litert.h"

size_t model_count(int rank, const int *shape) {
  size_t count = 1;
  for (int axis = 0; axis < rank; ++axis) count *= (size_t)shape[axis];
  return count;
}

size_t model_value_bytes(enum model_type type) {
  switch (type) {
    case MODEL_INT8:
    case MODEL_UINT8:
    case MODEL_BOOL: return 1;
    case MODEL_INT16: return 2;
    case MODEL_INT64: return 8;
    case MODEL_FLOAT32:
    case MODEL_INT32: break;
  }
  return 4;
}

static double value_at(enum model_type type, const void *data, size_t index) {
  switch (type) {
    case MODEL_INT8: return ((const int8_t *)data)[index];
    case MODEL_UINT8:
    case MODEL_BOOL: return ((const uint8_t *)data)[index];
    case MODEL_INT16: return ((const int16_t *)data)[index];
    case MODEL_INT32: return ((const int32_t *)data)[index];
    case MODEL_INT64: return (double)((const int64_t *)data)[index];
    case MODEL_FLOAT32: break;
  }
  return (double)((const float *)data)[index];
}

static void store(enum model_type type, void *data, size_t index, double value) {
  switch (type) {
    case MODEL_INT8: ((int8_t *)data)[index] = (int8_t)value; break;
    case MODEL_UINT8: ((uint8_t *)data)[index] = (uint8_t)value; break;
    case MODEL_BOOL: ((uint8_t *)data)[index] = value != 0; break;
    case MODEL_INT16: ((int16_t *)data)[index] = (int16_t)value; break;
    case MODEL_INT32: ((int32_t *)data)[index] = (int32_t)value; break;
    case MODEL_INT64: ((int64_t *)data)[index] = (int64_t)value; break;
    case MODEL_FLOAT32: ((float *)data)[index] = (float)value; break;
  }
}

/* Stores a value that is not quantized. An integer type refuses fractions, NaN and values outside of its range. */
static const char *store_exactly(enum model_type type, void *data, size_t index, double value) {
  double highest = 0, lowest = 0;
  switch (type) {
    case MODEL_INT8: lowest = -128, highest = 127; break;
    case MODEL_UINT8: highest = 255; break;
    case MODEL_BOOL: highest = 1; break;
    case MODEL_INT16: lowest = -32768, highest = 32767; break;
    case MODEL_INT32: lowest = -2147483648.0, highest = 2147483647.0; break;
    case MODEL_INT64: lowest = -9007199254740992.0, highest = 9007199254740992.0; break; /* exact in a double */
    case MODEL_FLOAT32: store(type, data, index, value); return NULL;
  }
  if (!(value >= lowest && value <= highest && value == floor(value))) return "a value does not fit the input's type";
  store(type, data, index, value);
  return NULL;
}

/* ---- Preprocessing: float32 arithmetic, as in Python. Compile with -ffp-contract=off for equal bits. ---- */

/* The two neighbors of pixel `index` of `target` pixels among `source` pixels, and its distance from the first:
 * half-pixel centers, as in tf.image.resize without antialiasing. */
static void neighbors(int index, int target, int source, int *first, int *second, float *weight) {
  const float position = ((float)index + 0.5f) * (float)((double)source / target) - 0.5f;
  const float below = floorf(position);
  *first = below < 0.0f ? 0 : (int)below;
  *second = (int)below + 1 < source ? (int)below + 1 : source - 1;
  *weight = position - below;
}

static float between(float first, float second, float weight) { return first + (second - first) * weight; }

/* Returns images (n, height, width, channels) in another size. The caller frees them. */
static float *resize(const float *images, const int *shape, int height, int width) {
  const int channels = shape[3];
  const size_t row = (size_t)shape[2] * (size_t)channels;
  float *resized = (float *)malloc(sizeof(float) * (size_t)shape[0] * (size_t)height * (size_t)width * (size_t)channels);
  float *next = resized;
  if (!resized) return NULL;
  for (int image = 0; image < shape[0]; ++image) {
    const float *pixels = images + (size_t)image * (size_t)shape[1] * row;
    for (int y = 0; y < height; ++y) {
      int top, bottom;
      float down;
      neighbors(y, height, shape[1], &top, &bottom, &down);
      for (int x = 0; x < width; ++x) {
        int left, right;
        float across;
        neighbors(x, width, shape[2], &left, &right, &across);
        for (int channel = 0; channel < channels; ++channel) {
          const float *upper = pixels + (size_t)top * row + channel, *lower = pixels + (size_t)bottom * row + channel;
          const size_t at_left = (size_t)left * (size_t)channels, at_right = (size_t)right * (size_t)channels;
          *next++ = between(between(upper[at_left], upper[at_right], across),
                            between(lower[at_left], lower[at_right], across), down);
        }
      }
    }
  }
  return resized;
}

/* round(x / scale) + zero point, half to even, limited to the range of the type. */
static const char *quantize(const struct model_tensor *input, const float *values, size_t count, void *output) {
  static const struct {
    enum model_type type;
    float lowest, highest;
  } LIMITS[] = {{MODEL_INT8, -128, 127}, {MODEL_UINT8, 0, 255}, {MODEL_INT16, -32768, 32767}};
  const float reciprocal = 1.0f / input->scale;
  float lowest = 0, highest = 0;
  for (size_t at = 0; at < sizeof LIMITS / sizeof LIMITS[0]; ++at) {
    if (LIMITS[at].type == input->type) {
      lowest = LIMITS[at].lowest;
      highest = LIMITS[at].highest;
    }
  }
  for (size_t at = 0; at < count; ++at) {
    float value = nearbyintf(values[at] * reciprocal) + (float)input->zero_point;
    if (isnan(value)) return "a value is not a number";
    value = value < lowest ? lowest : value > highest ? highest : value;
    store(input->type, output, at, value);
  }
  return NULL;
}

static const char *finish(const struct model_tensor *input, float *values, const int *shape, int rank, void *output) {
  const size_t count = model_count(rank, shape);
  const char *problem = NULL;
  for (int at = 0; at < input->num_steps && !problem; ++at) {
    const struct model_step *step = &input->steps[at];
    if (step->kind == MODEL_SCALE_OFFSET) {
      for (size_t place = 0; place < count; ++place) values[place] = values[place] * step->scale + step->offset;
    } else if (step->kind == MODEL_NORMALIZE) {
      for (size_t place = 0; place < count; ++place) {
        const size_t channel = place % (size_t)step->num_channels;
        values[place] = (values[place] - step->mean[channel]) / step->std[channel];
      }
    } else if (step->kind == MODEL_QUANTIZE) {
      return quantize(input, values, count, output);
    }
  }
  for (size_t place = 0; place < count && !problem; ++place) {
    if (input->type == MODEL_FLOAT32) {
      ((float *)output)[place] = values[place];
    } else {
      problem = store_exactly(input->type, output, place, values[place]);
    }
  }
  return problem;
}

const char *model_preprocess(const struct model_tensor *input, const struct model_array *array, void *output) {
  int shape[MODEL_MAX_RANK] = {0}, rank = array->rank;
  size_t count = model_count(rank, array->shape);
  const char *problem;
  float *values;
  if (input->num_steps == 0) { /* integers stay exact */
    if (count != model_count(input->rank, input->shape)) return "the values have another number than the input";
    if (array->type == input->type) {
      memcpy(output, array->data, count * model_value_bytes(input->type));
    } else {
      for (size_t at = 0; at < count; ++at) {
        problem = store_exactly(input->type, output, at, value_at(array->type, array->data, at));
        if (problem) return problem;
      }
    }
    return NULL;
  }
  memcpy(shape, array->shape, sizeof shape);
  values = (float *)malloc(sizeof(float) * (count ? count : 1));
  if (!values) return "out of memory";
  for (size_t at = 0; at < count; ++at) values[at] = (float)value_at(array->type, array->data, at);
  if (input->steps[0].kind == MODEL_RESIZE) {
    const struct model_step *step = &input->steps[0];
    if (rank != 4) {
      free(values);
      return "the values are not images (n, height, width, channels)";
    }
    if (shape[1] != step->height || shape[2] != step->width) {
      float *resized = resize(values, shape, step->height, step->width);
      free(values);
      if (!resized) return "out of memory";
      values = resized;
      shape[1] = step->height;
      shape[2] = step->width;
    }
  }
  problem = model_count(rank, shape) == model_count(input->rank, input->shape)
                ? finish(input, values, shape, rank, output)
                : "the values have another number than the input";
  free(values);
  return problem;
}

void model_dequantize(const struct model_tensor *output, const void *values, size_t count, float *real) {
  for (size_t at = 0; at < count; ++at) {
    const double value = value_at(output->type, values, at);
    real[at] = output->is_quantized ? (float)((int32_t)value - output->zero_point) * output->scale : (float)value;
  }
}

int model_best_class(const float *scores, int count) {
  int best = 0;
  for (int index = 1; index < count; ++index) {
    if (scores[index] > scores[best]) best = index;
  }
  return best;
}

/* ---- Inference ---- */

struct model {
  LiteRtEnvironment environment;
  LiteRtModel file;
  LiteRtCompiledModel compiled;
  LiteRtParamIndex signature;
  size_t num_inputs, num_outputs;
  /* In the order of the signature, and the place of each tensor of MODEL_INPUTS and MODEL_OUTPUTS in it. */
  LiteRtTensorBuffer *inputs, *outputs;
  size_t *place_of_input, *place_of_output;
};

#define CHECK(call) \
  do { \
    if ((call) != 0) return #call " failed"; \
  } while (0)

static const char *find_signature(struct model *model, LiteRtSignature *signature) {
  LiteRtParamIndex count = 0;
  const char *key = NULL;
  CHECK(LiteRtGetNumModelSignatures(model->file, &count));
  for (model->signature = 0; model->signature < count; ++model->signature) {
    CHECK(LiteRtGetModelSignature(model->file, model->signature, signature));
    CHECK(LiteRtGetSignatureKey(*signature, &key));
    if (!MODEL_SIGNATURE || strcmp(key, MODEL_SIGNATURE) == 0) return NULL;
  }
  return "the file does not have the signature that model_io.c names";
}

/* Creates the buffer of a tensor at a place of the signature. */
static const char *create_buffer(struct model *model, LiteRtTensor tensor, const struct model_tensor *about,
                                 LiteRtTensorBufferRequirements requirements, LiteRtTensorBuffer *buffer) {
  LiteRtRankedTensorType type;
  size_t bytes = 0;
  memset(&type, 0, sizeof type);
  CHECK(LiteRtGetRankedTensorType(tensor, &type));
  for (int axis = 0; axis < about->rank; ++axis) type.dimensions[axis] = about->shape[axis];
  CHECK(LiteRtCreateManagedTensorBufferFromRequirements(model->environment, &type, requirements, buffer));
  CHECK(LiteRtGetTensorBufferPackedSize(*buffer, &bytes));
  if (bytes != model_count(about->rank, about->shape) * model_value_bytes(about->type)) {
    return "a tensor of the file has another size than model_io.c says";
  }
  return NULL;
}

static int find_tensor(const struct model_tensor *tensors, int count, const char *name) {
  for (int at = 0; at < count; ++at) {
    if (strcmp(tensors[at].name, name) == 0) return at;
  }
  return -1;
}

static const char *create_inputs(struct model *model, LiteRtSignature signature) {
  LiteRtTensorBufferRequirements requirements;
  LiteRtTensor tensor;
  const char *name, *problem;
  CHECK(LiteRtGetNumSignatureInputs(signature, &model->num_inputs));
  if (model->num_inputs != (size_t)MODEL_NUM_INPUTS) return "the file has another number of inputs";
  for (size_t place = 0; place < model->num_inputs; ++place) {
    int at;
    CHECK(LiteRtGetSignatureInputName(signature, place, &name));
    if ((at = find_tensor(MODEL_INPUTS, MODEL_NUM_INPUTS, name)) < 0) return "the file has an unknown input";
    model->place_of_input[at] = place;
    if (MODEL_INPUTS[at].is_dynamic) {
      CHECK(LiteRtCompiledModelResizeInputTensor(model->compiled, model->signature, place, MODEL_INPUTS[at].shape,
                                                 (size_t)MODEL_INPUTS[at].rank));
    }
    CHECK(LiteRtGetSignatureInputTensorByIndex(signature, place, &tensor));
    CHECK(LiteRtGetCompiledModelInputBufferRequirements(model->compiled, model->signature, place, &requirements));
    problem = create_buffer(model, tensor, &MODEL_INPUTS[at], requirements, &model->inputs[place]);
    if (problem) return problem;
  }
  return NULL;
}

static const char *create_outputs(struct model *model, LiteRtSignature signature) {
  LiteRtTensorBufferRequirements requirements;
  LiteRtTensor tensor;
  const char *name, *problem;
  CHECK(LiteRtGetNumSignatureOutputs(signature, &model->num_outputs));
  if (model->num_outputs != (size_t)MODEL_NUM_OUTPUTS) return "the file has another number of outputs";
  for (size_t place = 0; place < model->num_outputs; ++place) {
    int at;
    CHECK(LiteRtGetSignatureOutputName(signature, place, &name));
    if ((at = find_tensor(MODEL_OUTPUTS, MODEL_NUM_OUTPUTS, name)) < 0) return "the file has an unknown output";
    model->place_of_output[at] = place;
    CHECK(LiteRtGetSignatureOutputTensorByIndex(signature, place, &tensor));
    CHECK(LiteRtGetCompiledModelOutputBufferRequirements(model->compiled, model->signature, place, &requirements));
    problem = create_buffer(model, tensor, &MODEL_OUTPUTS[at], requirements, &model->outputs[place]);
    if (problem) return problem;
  }
  return NULL;
}

static const char *load(const char *path, struct model *model) {
  LiteRtOptions options = NULL;
  LiteRtSignature signature = NULL;
  LiteRtStatus status;
  const char *problem;
  CHECK(LiteRtCreateEnvironment(0, NULL, &model->environment));
  CHECK(LiteRtCreateModelFromFile(model->environment, path, &model->file));
  CHECK(LiteRtCreateOptions(&options));
  status = LiteRtSetOptionsHardwareAccelerators(options, LITERT_CPU);
  if (status == 0) status = LiteRtCreateCompiledModel(model->environment, model->file, options, &model->compiled);
  LiteRtDestroyOptions(options);
  if (status != 0) return "LiteRtCreateCompiledModel failed";
  if ((problem = find_signature(model, &signature)) != NULL) return problem;
  if ((problem = create_inputs(model, signature)) != NULL) return problem;
  return create_outputs(model, signature);
}

const char *model_load(const char *path, struct model **model) {
  const char *problem;
  *model = (struct model *)calloc(1, sizeof **model);
  if (!*model) return "out of memory";
  (*model)->inputs = (LiteRtTensorBuffer *)calloc((size_t)MODEL_NUM_INPUTS, sizeof(LiteRtTensorBuffer));
  (*model)->outputs = (LiteRtTensorBuffer *)calloc((size_t)MODEL_NUM_OUTPUTS, sizeof(LiteRtTensorBuffer));
  (*model)->place_of_input = (size_t *)calloc((size_t)MODEL_NUM_INPUTS, sizeof(size_t));
  (*model)->place_of_output = (size_t *)calloc((size_t)MODEL_NUM_OUTPUTS, sizeof(size_t));
  if ((*model)->inputs && (*model)->outputs && (*model)->place_of_input && (*model)->place_of_output) {
    problem = load(path, *model);
  } else {
    problem = "out of memory";
  }
  if (problem) {
    model_free(*model);
    *model = NULL;
  }
  return problem;
}

static const char *copy(LiteRtTensorBuffer buffer, void *memory, size_t bytes, int mode) {
  void *place = NULL;
  CHECK(LiteRtLockTensorBuffer(buffer, &place, mode));
  if (mode == LITERT_WRITE) {
    memcpy(place, memory, bytes);
  } else {
    memcpy(memory, place, bytes);
  }
  CHECK(LiteRtUnlockTensorBuffer(buffer));
  return NULL;
}

static size_t bytes_of(const struct model_tensor *tensor) {
  return model_count(tensor->rank, tensor->shape) * model_value_bytes(tensor->type);
}

const char *model_run(struct model *model, const void *const *inputs, void *const *outputs) {
  const char *problem;
  for (int at = 0; at < MODEL_NUM_INPUTS; ++at) {
    LiteRtTensorBuffer buffer = model->inputs[model->place_of_input[at]];
    problem = copy(buffer, (void *)(uintptr_t)inputs[at], bytes_of(&MODEL_INPUTS[at]), LITERT_WRITE);
    if (problem) return problem;
  }
  CHECK(LiteRtRunCompiledModel(model->compiled, model->signature, model->num_inputs, model->inputs, model->num_outputs,
                               model->outputs));
  for (int at = 0; at < MODEL_NUM_OUTPUTS; ++at) {
    LiteRtTensorBuffer buffer = model->outputs[model->place_of_output[at]];
    problem = copy(buffer, outputs[at], bytes_of(&MODEL_OUTPUTS[at]), LITERT_READ);
    if (problem) return problem;
  }
  return NULL;
}

void model_free(struct model *model) {
  if (!model) return;
  for (int place = 0; model->inputs && place < MODEL_NUM_INPUTS; ++place) {
    if (model->inputs[place]) LiteRtDestroyTensorBuffer(model->inputs[place]);
  }
  for (int place = 0; model->outputs && place < MODEL_NUM_OUTPUTS; ++place) {
    if (model->outputs[place]) LiteRtDestroyTensorBuffer(model->outputs[place]);
  }
  if (model->compiled) LiteRtDestroyCompiledModel(model->compiled);
  if (model->file) LiteRtDestroyModel(model->file);
  if (model->environment) LiteRtDestroyEnvironment(model->environment);
  free(model->inputs);
  free(model->outputs);
  free(model->place_of_input);
  free(model->place_of_output);
  free(model);
}
