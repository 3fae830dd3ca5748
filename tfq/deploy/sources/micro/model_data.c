/* tfq:begin header */
/* A model as a C array. */
/* tfq:end header */
#include "model_data.h"

#ifndef __cplusplus
#include <stdalign.h>
#endif

/* tfq:begin data */
alignas(16) const unsigned char g_model_data[] = {0x1c, 0x00, 0x00, 0x00, 0x54, 0x46, 0x4c, 0x33};
const unsigned int g_model_data_size = 8;
/* tfq:end data */
