#include <stdio.h>
#include <string.h>

#include "ag_lines.h"
#include "ag_probe.h"
#include "util.h"

// Addresses as the kernel prints them: 32-bit words in host order.
static bool reachable(const char *addr)
{
	static const char *const ok[] = {
	    "00000000",				// 0.0.0.0
	    "0100007F",				// 127.0.0.1
	    "00000000000000000000000000000000", // ::
	    "00000000000000000000000001000000", // ::1
	    "0000000000000000FFFF00000100007F", // ::ffff:127.0.0.1
	};

	for (size_t i = 0; i < ARRAY_SIZE(ok); i++) {
		if (strcmp(addr, ok[i]) == 0)
			return true;
	}
	return false;
}

bool ag_tcp_line_listens(const char *line, uint16_t port)
{
	char addr[33];
	unsigned lport, state;

	return sscanf(line, " %*d: %32[0-9A-F]:%4X %*32[0-9A-F]:%*4X %2X", addr,
		      &lport, &state) == 3 &&
	       state == 0x0a && lport == port && reachable(addr);
}

static bool table_listens(const char *path, uint16_t port)
{
	struct ag_lines l;
	bool found = false;
	char *line;

	if (ag_lines_open(&l, path) < 0)
		return false;
	while (!found && (line = ag_lines_next(&l)))
		found = ag_tcp_line_listens(line, port);
	ag_lines_close(&l);
	return found;
}

bool ag_tcp_listens(uint16_t port)
{
	return table_listens("/proc/net/tcp", port) ||
	       table_listens("/proc/net/tcp6", port);
}
