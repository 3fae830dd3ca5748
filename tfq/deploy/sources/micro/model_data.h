/* tfq:begin header */
/* A model as a C array. */
/* tfq:end header */
#ifndef MODEL_DATA_H_
#define MODEL_DATA_H_

#ifdef __cplusplus
extern "C" {
#endif

/* The flatbuffer, aligned to 16 bytes, and its size in bytes. `const` keeps it in flash. */
extern const unsigned char g_model_data[];
extern const unsigned int g_model_data_size;

#ifdef __cplusplus
}
#endif

#endif /* MODEL_DATA_H_ */
