#define NAME amx
#define AMX
#define ENTER amx_enter
#define LEAVE amx_leave
#define MAX_ROWS 12
#define TILE_ROWS 16
#include "isa.inc"
