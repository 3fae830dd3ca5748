/* What golden.json says about the files of the golden vectors. */
#include "golden.h"

/* tfq:begin values */
const int GOLDEN_COUNT = 1;
const struct golden_file GOLDEN_SOURCES[] = {{"golden/0_input_0_source.bin", MODEL_FLOAT32, 4, {1, 8, 8, 1}}};
const struct golden_file GOLDEN_INPUTS[] = {{"golden/0_input_0.bin", MODEL_INT8, 4, {1, 8, 8, 1}}};
const struct golden_file GOLDEN_OUTPUTS[] = {{"golden/0_output_0.bin", MODEL_INT8, 2, {1, 2}}};
const struct golden_file GOLDEN_REAL_OUTPUTS[] = {{"golden/0_output_0_decoded.bin", MODEL_FLOAT32, 2, {1, 2}}};
const int GOLDEN_BEST[] = {1};
/* tfq:end values */
