/* What io.json says about the inputs and outputs of the model, as constants. */
#include "model.h"

/* tfq:begin values */
static const struct model_step INPUT_0_STEPS[] = {{MODEL_QUANTIZE, 0, 0, 0.0f, 0.0f, NULL, NULL, 0}};
static const char *const OUTPUT_0_LABELS[] = {"cat", "dog"};

const char *const MODEL_SIGNATURE = "serving_default";
const int MODEL_NUM_INPUTS = 1;
const struct model_tensor MODEL_INPUTS[] = {
    {"image", MODEL_INT8, 4, {1, 8, 8, 1}, 0, 1, 0.0625f, -128, INPUT_0_STEPS, 1, NULL, 0},
};
const int MODEL_NUM_OUTPUTS = 1;
const struct model_tensor MODEL_OUTPUTS[] = {
    {"probabilities", MODEL_INT8, 2, {1, 2}, 0, 1, 0.00390625f, -128, NULL, 0, OUTPUT_0_LABELS, 2},
};
/* tfq:end values */
