// Does anybody listen on a TCP port that 127.0.0.1 or ::1 reaches?
#ifndef THAW_AG_PROBE_H
#define THAW_AG_PROBE_H

#include <stdbool.h>
#include <stdint.h>

// One line of /proc/net/tcp or tcp6.
bool ag_tcp_line_listens(const char *line, uint16_t port);
// Reads the tables, without connecting: the application sees nothing of it.
bool ag_tcp_listens(uint16_t port);

#endif
