// Between the files of the parser (head*.c). Each of them that judges says no with a
// status and a sentence in *why, and 0 else.
#ifndef THAW_FRONT_HEAD_INTERNAL_H
#define THAW_FRONT_HEAD_INTERNAL_H

#include "head.h"

// --- head_lines.c: syntax ------------------------------------------------------

bool head_token_char(unsigned char c); // RFC 9110 5.6.2
size_t head_token_len(const char *p);
char head_lower(char c);
// Cuts the next line off; NULL at the empty line.
char *head_line(char **at);
int head_request_line(struct head *h, char *line, const char **why);
int head_status_line(struct head *h, char *line, const char **why);
int head_fields(struct head *h, char *at, const char **why);

// --- head_mean.c: meaning --------------------------------------------------------

// Is it a field that frames or routes, by its own name or by one that some take
// for it?
bool head_frames(const char *name, bool exactly);
void head_drop_hop(struct head_field *f); // if it is of this hop only
// Content-Length and Transfer-Encoding; the rest of the framing depends on what
// kind of message this is.
int head_framing(struct head *h, const char **why);
int head_connection(struct head *h, const char **why);
int head_host(struct head *h, const char **why);   // to lower case, no port
int head_target(struct head *h, const char **why); // to origin form
int head_expect(struct head *h, const char **why);

#endif
