// What the test disk holds; known to the test and to the hook.
#include "hook_disk.h"

void hook_disk_block(uint8_t *dst, uint32_t block, unsigned kind)
{
	uint32_t *w = (uint32_t *)dst;

	for (uint32_t i = 0; i < 1024; i++)
		w[i] = kind ? (block * 2654435761u) ^ (i * 40503u) ^
				  (kind * 0x9e3779b9u)
			    : 0;
}

unsigned hook_disk_kind(uint32_t block, bool own)
{
	if (own && block >= 300 && block < 400)
		return 0;
	if (own && block >= 100 && block < 200)
		return 2;
	if (own && block >= 1000 && block % 16 < 12)
		return 2;
	return block % 8 == 7 ? 0 : 1;
}
