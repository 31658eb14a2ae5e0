#include "img_reason.h"

#include <stddef.h>
#include <string.h>

static const char *const names[] = {[IMG_NO_REASON] = "",
#define X(name) [IMG_##name] = #name,
				    IMG_REASONS(X)
#undef X
};

const char *img_reason_name(enum img_reason r)
{
	return (unsigned)r < IMG_NUM_REASONS ? names[r] : "";
}

enum img_reason img_reason_parse(const char *name)
{
	for (unsigned r = IMG_NO_REASON + 1; r < IMG_NUM_REASONS; r++)
		if (!strcmp(names[r], name))
			return (enum img_reason)r;
	return IMG_NO_REASON;
}
