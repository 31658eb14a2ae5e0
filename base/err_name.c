// The names of errors, apart from err.c: only glibc knows them, and the cell does
// without it.
#include <string.h>

#include "err.h"

const char *err_name(int code)
{
	const char *name = strerrorname_np(code < 0 ? -code : code);

	return name ? name : "EUNKNOWN";
}
