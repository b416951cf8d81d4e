#define NAME amx
#define TILES
#define TILE_ROWS 16
#include "isa.inc"
