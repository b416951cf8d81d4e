#define NAME avx2
#define TILE_ROWS 4
#include "isa.inc"
