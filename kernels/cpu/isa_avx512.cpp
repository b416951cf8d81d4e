#define NAME avx512
#define MAX_ROWS 12
#define TILE_ROWS 12
#include "isa.inc"
