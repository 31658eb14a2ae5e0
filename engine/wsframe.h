// The server's side of WebSocket frames (RFC 6455 section 5): what a client sends
// is taken apart, strictly; what goes to it is put together. Pure: no sockets.
//
// Binary messages pass in pieces of any size, as they come; texts are collected,
// at most WS_TEXT_MAX bytes of them, for they are only control here.
#ifndef THAW_ENG_WSFRAME_H
#define THAW_ENG_WSFRAME_H

#include "base.h"

enum {
	WS_TEXT_MAX = 4096,
	WS_CONTROL_MAX = 125,
	WS_HEAD_MAX = 10, // of a frame to the client
	WS_MESSAGE_MAX = 16 * 1024 * 1024,
};

enum ws_code { // 7.4.1
	WS_NORMAL = 1000,
	WS_GOING_AWAY = 1001,
	WS_PROTOCOL = 1002,
	WS_NOT_TEXT = 1007,
	WS_TOO_BIG = 1009,
	WS_INTERNAL = 1011,
};

enum ws_op { // 5.2
	WS_CONT = 0,
	WS_TEXT = 1,
	WS_BINARY = 2,
	WS_CLOSE = 8,
	WS_PING = 9,
	WS_PONG = 10,
};

struct ws_in {
	uint8_t head[14];
	unsigned have;
	bool in_payload, fin, bad;
	unsigned op;	  // of the frame
	unsigned message; // WS_TEXT or WS_BINARY: one is unfinished; else 0
	uint64_t left;	  // of the frame's payload
	uint64_t size;	  // of the message so far
	uint8_t mask[4];
	unsigned mask_at;
	uint8_t text[WS_TEXT_MAX], control[WS_CONTROL_MAX];
	size_t ntext, ncontrol;
};

struct ws_piece {
	enum ws_op op;	  // never WS_CONT
	const uint8_t *p; // a piece of WS_BINARY; the whole of everything else
	size_t n;
};

// Takes some of the n bytes at `p` (all zero: a new stream), which it unmasks in
// place, and sets *took. 1: a piece, borrowed until the next call; 0: all n bytes
// were taken, and there is none yet; else -enum ws_code: the stream is to be
// closed with that, and every call from now on says so. A text's UTF-8 is not
// looked at.
int ws_feed(struct ws_in *w, uint8_t *p, size_t n, size_t *took,
	    struct ws_piece *out);
// The code that a client's close says; WS_NORMAL without one.
unsigned ws_close_code(const struct ws_piece *close);
// The head of a whole, unmasked frame with a payload of n bytes; its length.
size_t ws_head(uint8_t out[WS_HEAD_MAX], enum ws_op op, size_t n);

#endif
