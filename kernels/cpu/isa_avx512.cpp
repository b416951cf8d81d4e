#define NAME avx512
#define TILE_ROWS 12
#include "isa.inc"
