/* Compares the model with the golden vectors. The exit code is 1 if a value differs.
 *
 *     ./self_test [FOLDER] [TOLERANCE]
 *
 * FOLDER is that of the bundle; the default is the current one. TOLERANCE is the largest difference in quantized values
 * that another processor may have; the default is 0, and golden/golden.json says what was measured.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "golden.h"
#include "model.h"

static const char *folder = ".";
static double tolerance = 0;
static int failures = 0;

static void fail(int vector, const char *what, const char *name, const char *problem) {
  printf("vector %d, %s %s: %s\n", vector, what, name, problem);
  ++failures;
}

/* Returns the content of a golden file; the caller frees it. Ends the program if it cannot be read. */
static void *read_file(const struct golden_file *file) {
  const size_t bytes = model_count(file->rank, file->shape) * model_value_bytes(file->type);
  char path[4096];
  void *data = malloc(bytes + 1);
  FILE *stream;
  size_t count = 0;
  snprintf(path, sizeof path, "%s/%s", folder, file->path);
  stream = fopen(path, "rb");
  if (stream && data) count = fread(data, 1, bytes + 1, stream);
  if (stream) fclose(stream);
  if (count != bytes) {
    printf("%s: expected a file of %zu bytes\n", path, bytes);
    exit(1);
  }
  return data;
}

static double value_of(enum model_type type, const void *data, size_t index) {
  const struct model_tensor plain = {"", type, 0, {0}, 0, 0, 1.0f, 0, NULL, 0, NULL, 0};
  float value;
  model_dequantize(&plain, (const char *)data + index * model_value_bytes(type), 1, &value);
  return (double)value;
}

/* Reports values that differ. Floats that the model computed may differ by rounding on another processor. */
static void compare(int vector, const char *what, const char *name, const struct golden_file *file, const void *values,
                    int is_output, double allowed_steps) {
  const size_t count = model_count(file->rank, file->shape);
  void *expected = read_file(file);
  size_t different = 0;
  double largest = 0;
  char problem[200];
  for (size_t at = 0; at < count; ++at) {
    const double want = value_of(file->type, expected, at);
    const double got = value_of(file->type, values, at);
    const double difference = got == want ? 0 : fabs(got - want); /* infinity equals itself */
    double allowed = allowed_steps;
    if (is_output && file->type == MODEL_FLOAT32 && isfinite(want)) allowed += 1e-5 + 1e-4 * fabs(want);
    if (!(difference <= allowed)) {
      ++different;
      if (!(difference <= largest)) largest = difference;
    }
  }
  if (file->type != MODEL_FLOAT32 && different == 0 && allowed_steps == 0 &&
      memcmp(values, expected, count * model_value_bytes(file->type)) != 0) {
    different = count; /* integers too large for float32 */
  }
  if (different) {
    snprintf(problem, sizeof problem, "%zu of %zu values differ, by at most %g", different, count, largest);
    fail(vector, what, name, problem);
  }
  free(expected);
}

static void *allocate(const struct model_tensor *tensor) {
  void *memory = calloc(model_count(tensor->rank, tensor->shape) + 1, model_value_bytes(tensor->type));
  if (!memory) {
    printf("out of memory\n");
    exit(1);
  }
  return memory;
}

static void check_inputs(int vector, void **inputs) {
  for (int at = 0; at < MODEL_NUM_INPUTS; ++at) {
    const struct golden_file *source = &GOLDEN_SOURCES[vector * MODEL_NUM_INPUTS + at];
    struct model_array values;
    const char *problem;
    void *data = read_file(source);
    values.type = source->type;
    values.rank = source->rank;
    memcpy(values.shape, source->shape, sizeof values.shape);
    values.data = data;
    problem = model_preprocess(&MODEL_INPUTS[at], &values, inputs[at]);
    if (problem) fail(vector, "input", MODEL_INPUTS[at].name, problem);
    compare(vector, "input", MODEL_INPUTS[at].name, &GOLDEN_INPUTS[vector * MODEL_NUM_INPUTS + at], inputs[at], 0, 0);
    free(data);
  }
}

static void check_outputs(int vector, void **outputs) {
  for (int at = 0; at < MODEL_NUM_OUTPUTS; ++at) {
    const struct model_tensor *output = &MODEL_OUTPUTS[at];
    const size_t count = model_count(output->rank, output->shape);
    const int place = vector * MODEL_NUM_OUTPUTS + at;
    const double steps = output->is_quantized ? tolerance : 0;
    float *real = (float *)calloc(count + 1, sizeof(float));
    if (!real) exit(1);
    compare(vector, "output", output->name, &GOLDEN_OUTPUTS[place], outputs[at], 1, steps);
    model_dequantize(output, outputs[at], count, real);
    compare(vector, "decoded output", output->name, &GOLDEN_REAL_OUTPUTS[place], real, 1, steps * (double)output->scale);
    if (GOLDEN_BEST[place] >= 0 && steps == 0) {
      const int best = model_best_class(real, output->num_labels);
      if (best != GOLDEN_BEST[place]) fail(vector, "best class", output->labels[best], "another class was expected");
    }
    free(real);
  }
}

int main(int argc, char **argv) {
  struct model *model = NULL;
  void **inputs = (void **)calloc((size_t)MODEL_NUM_INPUTS + 1, sizeof(void *));
  void **outputs = (void **)calloc((size_t)MODEL_NUM_OUTPUTS + 1, sizeof(void *));
  const char *problem;
  char path[4096];
  if (argc > 1) folder = argv[1];
  if (argc > 2) tolerance = atof(argv[2]);
  snprintf(path, sizeof path, "%s/model.tflite", folder);
  problem = model_load(path, &model);
  if (problem || !inputs || !outputs) {
    printf("%s: %s\n", path, problem ? problem : "out of memory");
    return 1;
  }
  for (int at = 0; at < MODEL_NUM_INPUTS; ++at) inputs[at] = allocate(&MODEL_INPUTS[at]);
  for (int at = 0; at < MODEL_NUM_OUTPUTS; ++at) outputs[at] = allocate(&MODEL_OUTPUTS[at]);
  for (int vector = 0; vector < GOLDEN_COUNT; ++vector) {
    check_inputs(vector, inputs);
    problem = model_run(model, (const void *const *)inputs, (void *const *)outputs);
    if (problem) {
      fail(vector, "run", "", problem);
    } else {
      check_outputs(vector, outputs);
    }
  }
  for (int at = 0; at < MODEL_NUM_INPUTS; ++at) free(inputs[at]);
  for (int at = 0; at < MODEL_NUM_OUTPUTS; ++at) free(outputs[at]);
  free(inputs);
  free(outputs);
  model_free(model);
  if (!failures && tolerance > 0) {
    printf("%d golden vectors: inputs are equal, outputs differ by at most %g quantized values\n", GOLDEN_COUNT, tolerance);
  } else if (!failures) {
    printf("%d golden vectors: inputs, outputs and classes agree\n", GOLDEN_COUNT);
  }
  return failures != 0;
}
