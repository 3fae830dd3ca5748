/* The files of the golden vectors. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include "model.h"

struct golden_file {
  const char *path; /* in the folder of the bundle */
  enum model_type type;
  int rank;
  int shape[MODEL_MAX_RANK];
};

extern const int GOLDEN_COUNT;
/* For each vector, an entry for each input: the values before preprocessing, and what the model is fed. */
extern const struct golden_file GOLDEN_SOURCES[];
extern const struct golden_file GOLDEN_INPUTS[];
/* For each vector, an entry for each output: its values in the model's own type, and as real values. */
extern const struct golden_file GOLDEN_OUTPUTS[];
extern const struct golden_file GOLDEN_REAL_OUTPUTS[];
/* For each of them the best class; -1 for an output without labels. */
extern const int GOLDEN_BEST[];

#endif
