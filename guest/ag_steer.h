// Connections to one address and port reach a socket that listens on another port.
#ifndef THAW_AG_STEER_H
#define THAW_AG_STEER_H

#include <stdint.h>

// In this process' network name space, as long as the descriptor that it returns
// is open: TCP connections to addr:port (host byte order; the address must be one
// of this host's) come to `listener`. -errno: the kernel cannot.
int ag_steer(uint32_t addr, uint16_t port, int listener);

#endif
