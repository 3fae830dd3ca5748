/* tfq:begin header */
/* The memory that a model needs in TensorFlow Lite Micro. */
/* tfq:end header */
#ifndef ARENA_H_
#define ARENA_H_

/* tfq:begin arena */
#define MODEL_ARENA_BYTES 8192
/* tfq:end arena */

#endif /* ARENA_H_ */
