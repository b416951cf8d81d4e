#define NAME portable
#define TILE_ROWS 4
#include "isa.inc"
