/* The model of this bundle: its inputs and outputs, preprocessing, and inference with LiteRT on the CPU. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MODEL_MAX_RANK = 8 };

enum model_type {
  MODEL_FLOAT32,
  MODEL_INT8,
  MODEL_UINT8,
  MODEL_INT16,
  MODEL_INT32,
  MODEL_INT64,
  MODEL_BOOL
};

enum model_step_kind { MODEL_RESIZE, MODEL_SCALE_OFFSET, MODEL_NORMALIZE, MODEL_QUANTIZE };

/* A step from real values to the model's input. Only the fields of its kind count. */
struct model_step {
  enum model_step_kind kind;
  int height, width;     /* MODEL_RESIZE */
  float scale, offset;   /* MODEL_SCALE_OFFSET: x * scale + offset */
  const float *mean;     /* MODEL_NORMALIZE: (x - mean) / std, for each channel or for all */
  const float *std;
  int num_channels;      /* the length of mean and std */
};

/* An input or output. A dimension that the file leaves open has the size that it has in the golden vectors. */
struct model_tensor {
  const char *name;
  enum model_type type;
  int rank;
  int shape[MODEL_MAX_RANK];
  int is_dynamic;        /* whether the file leaves a dimension open */
  int is_quantized;
  float scale;           /* real value = (quantized value - zero_point) * scale */
  int zero_point;
  const struct model_step *steps; /* of an input, in order */
  int num_steps;
  const char *const *labels;      /* of an output, along its last axis */
  int num_labels;
};

/* An array in row order. */
struct model_array {
  enum model_type type;
  int rank;
  int shape[MODEL_MAX_RANK];
  const void *data;
};

/* These are in model_io.c. */
extern const char *const MODEL_SIGNATURE; /* the key of the signature to run; NULL if the file has none */
extern const int MODEL_NUM_INPUTS;
extern const struct model_tensor MODEL_INPUTS[];
extern const int MODEL_NUM_OUTPUTS;
extern const struct model_tensor MODEL_OUTPUTS[];

/* The number of values of a shape, and of bytes of a value. */
size_t model_count(int rank, const int *shape);
size_t model_value_bytes(enum model_type type);

/* Computes the steps of an input: pixels, audio samples or token numbers in, the model's own type out.
 * `output` has the size of the input. Returns NULL, or what is wrong. */
const char *model_preprocess(const struct model_tensor *input, const struct model_array *values, void *output);

/* Converts `count` values of an output to real values. */
void model_dequantize(const struct model_tensor *output, const void *values, size_t count, float *real);

/* Returns the class with the highest of `count` scores; of equal scores, the first. */
int model_best_class(const float *scores, int count);

/* A loaded model. All functions return NULL, or what failed. */
struct model;
const char *model_load(const char *path, struct model **model);
/* Copies the inputs in, runs the model, and copies the outputs out, all in the order of MODEL_INPUTS and MODEL_OUTPUTS. */
const char *model_run(struct model *model, const void *const *inputs, void *const *outputs);
void model_free(struct model *model);

#ifdef __cplusplus
}
#endif

#endif
