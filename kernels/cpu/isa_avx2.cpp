#define NAME avx2
#define MAX_ROWS 4
#define TILE_ROWS 4
#include "isa.inc"
