// Addresses to listen on: text to socket address and back. Names are not looked
// up, for that would take as long as somebody else likes.
#ifndef THAW_ADDR_H
#define THAW_ADDR_H

#include <stdbool.h>

struct sockaddr_storage; // <sys/socket.h>

enum { ADDR_TEXT = 64 }; // room for an address as text

// "8480" or "localhost:8480" (of 127.0.0.1), "192.0.2.1:8480", "[::1]:8480"; port
// 0 too. The address's length for bind(2), or -EINVAL.
int addr_parse(const char *text, struct sockaddr_storage *sa);
bool addr_is_loopback(const struct sockaddr_storage *sa); // 127/8, ::1
// What a socket is bound to: its port (0: unknown), and in `out` the address in
// the form that addr_parse() takes. out may be NULL.
unsigned addr_bound(int fd, char out[ADDR_TEXT]);

#endif
