// Heads and bodies of HTTP/1.1 messages, as bytes: no sockets, no libevent. What
// passes here has one meaning only (head.c says which); what is sent on is
// written anew from what was understood, never copied.
#ifndef THAW_FRONT_HEAD_H
#define THAW_FRONT_HEAD_H

#include "base.h"

enum {
	HEAD_MAX = 64 * 1024, // bytes of a head, with its empty line
	HEAD_FIELDS = 100,
	TRAILERS_MAX = 8 * 1024,
	CHUNK_EXT_MAX = 256,	    // bytes of one chunk's extensions
	CHUNK_EXT_TOTAL = 8 * 1024, // and of a body's
};

// Collects the bytes of one head up to its empty line and not one more.
struct head_in {
	char *buf; // NUL-terminated once done
	size_t len, cap;
	bool cr;       // the last byte was CR
	bool in_line;  // the current line has bytes
	bool started;  // a line has ended
	bool trailers; // an empty section is fine, the limit is TRAILERS_MAX
	bool done;
};

// Takes bytes; sets in->done with the empty line. Returns how many it took, or
// -EBADMSG (a bare CR or LF, a control character, no start line), -E2BIG,
// -ENOMEM.
ssize_t head_in_feed(struct head_in *in, const char *p, size_t n);
void head_in_reset(struct head_in *in); // frees what it holds

enum framing { FRAMING_NONE, FRAMING_LENGTH, FRAMING_CHUNKED, FRAMING_CLOSE };

struct head_field {
	const char *name, *value; // value without white space around it
	bool drop;		  // of this hop only, or not for the other side
};

struct head {
	char *text; // owns every string below
	struct head_field f[HEAD_FIELDS];
	unsigned n;
	unsigned minor; // HTTP/1.minor
	// Of a request. host is the Host field in lower case without the port.
	const char *method, *target;
	char *host;
	bool expect_continue, te_trailers;
	// Of a response.
	int status;
	const char *reason;
	// Of either.
	enum framing framing;
	bool has_length; // a response to HEAD has one, and no body
	uint64_t length;
	bool close;	     // no other message follows on this connection
	const char *upgrade; // the protocol, if this asks for or makes a change
};

// Consumes what `in` collected (it is empty afterwards). 0; else the HTTP status
// that refuses a request and a sentence (a string constant) in *why. *h holds
// nothing then. A response's refusal means 502, whatever the number.
int head_parse_request(struct head *h, struct head_in *in, const char **why);
// to_head: the request's method was HEAD.
int head_parse_response(struct head *h, struct head_in *in, bool to_head,
			const char **why);
// Fields after a chunked body; those that frame or route are refused.
int head_parse_trailers(struct head *h, struct head_in *in, const char **why);
void head_free(struct head *h);

// The value of a field, or NULL; *again: it occurs more than once.
const char *head_get(const struct head *h, const char *name, bool *again);
// Equal without regard to case and to '_' for '-' (CGI and WSGI see no
// difference between X_Y and X-Y).
bool head_name_like(const char *name, const char *other, size_t n);
// Calls cb for each element of a comma-separated list until it returns false.
void head_list(const char *value,
	       bool (*cb)(void *ctx, const char *item, size_t n), void *ctx);

// Growing text. bad: there was no memory, and the text is of no use.
struct head_out {
	char *p;
	size_t len, cap;
	bool bad;
};
void head_put(struct head_out *o, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
// All fields that are not dropped, framing fields excepted.
void head_put_fields(struct head_out *o, const struct head *h);

// --- bodies ------------------------------------------------------------------

enum chunk_state {
	CHUNK_SIZE,
	CHUNK_EXT,
	CHUNK_SIZE_LF,
	CHUNK_DATA,
	CHUNK_DATA_LF,
	CHUNK_TRAILERS,
};

// Where in a body the reader is. Data is not touched here: `left` bytes of it
// follow; the owner moves them and says so.
struct body {
	enum framing framing;
	uint64_t left;
	bool done;
	enum chunk_state state;
	unsigned digits, ext;
	size_t ext_total;
	uint64_t size;
	struct head_in trailers; // done with the body, if it is chunked
};

void body_begin(struct body *b, enum framing framing, uint64_t length);
// Bytes that are framing: returns how many it took; 0 when b->left bytes of
// data are next, or b->done. -EBADMSG, -E2BIG, -ENOMEM.
ssize_t body_frame(struct body *b, const char *p, size_t n);
void body_took(struct body *b, uint64_t n);
void body_end(struct body *b); // frees

#endif
