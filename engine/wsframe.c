#include "wsframe.h"

#include <string.h>

static int broken(struct ws_in *w, enum ws_code code)
{
	w->bad = true;
	w->left = (uint64_t)code; // is what every later call says
	return -(int)code;
}

static unsigned head_size(const struct ws_in *w)
{
	unsigned len = w->have < 2 ? 0 : w->head[1] & 0x7f;

	return 6u + (len == 126 ? 2 : len == 127 ? 8 : 0);
}

static uint64_t payload_size(const struct ws_in *w)
{
	unsigned len = w->head[1] & 0x7f, n = len == 126 ? 2 : 8;
	uint64_t v = 0;

	if (len < 126)
		return len;
	for (unsigned i = 0; i < n; i++)
		v = v << 8 | w->head[2 + i];
	return v;
}

// 5.2: the shortest form only, and no sign bit.
static bool minimal(const struct ws_in *w, uint64_t n)
{
	unsigned len = w->head[1] & 0x7f;

	return len < 126 || (len == 126 ? n > 125 : n > 65535 && !(n >> 63));
}

// What may follow what: 5.4. 0 or a code.
static int in_order(struct ws_in *w)
{
	if (w->op >= WS_CLOSE)
		return w->fin && w->op <= WS_PONG && w->left <= WS_CONTROL_MAX
			   ? 0
			   : WS_PROTOCOL;
	if (w->op > WS_BINARY || (w->op == WS_CONT) != (w->message != 0))
		return WS_PROTOCOL;
	if (w->op != WS_CONT) {
		w->message = w->op;
		w->size = 0;
		w->ntext = 0;
	}
	if (w->left > WS_MESSAGE_MAX - w->size ||
	    (w->message == WS_TEXT && w->left > WS_TEXT_MAX - w->size))
		return WS_TOO_BIG;
	w->size += w->left;
	return 0;
}

static int take_head(struct ws_in *w)
{
	int code;

	w->fin = w->head[0] & 0x80;
	w->op = w->head[0] & 0x0f;
	w->left = payload_size(w);
	if ((w->head[0] & 0x70) || !minimal(w, w->left))
		return broken(w, WS_PROTOCOL);
	code = in_order(w);
	if (code)
		return broken(w, (enum ws_code)code);
	memcpy(w->mask, w->head + w->have - 4, 4);
	w->mask_at = 0;
	w->ncontrol = 0;
	w->in_payload = true;
	return 0;
}

static bool valid_close(const struct ws_in *w)
{
	unsigned code;

	if (!w->ncontrol)
		return true;
	if (w->ncontrol == 1)
		return false;
	code = (unsigned)w->control[0] << 8 | w->control[1];
	return (code >= 1000 && code <= 1003) ||
	       (code >= 1007 && code <= 1011) || (code >= 3000 && code <= 4999);
}

// The frame's payload is complete.
static int frame_done(struct ws_in *w, struct ws_piece *out)
{
	w->in_payload = false;
	w->have = 0;
	if (w->op >= WS_CLOSE) {
		if (w->op == WS_CLOSE && !valid_close(w))
			return broken(w, WS_PROTOCOL);
		*out = (struct ws_piece){(enum ws_op)w->op, w->control,
					 w->ncontrol};
		return 1;
	}
	if (!w->fin)
		return 0;
	if (w->message == WS_TEXT) {
		*out = (struct ws_piece){WS_TEXT, w->text, w->ntext};
		w->message = 0;
		return 1;
	}
	w->message = 0;
	return 0;
}

// Some of the frame's payload; 1: a piece of it is to be handed on now.
static int take_payload(struct ws_in *w, uint8_t *p, size_t n,
			struct ws_piece *out)
{
	for (size_t i = 0; i < n; i++)
		p[i] ^= w->mask[w->mask_at++ & 3];
	w->left -= n;
	if (w->op >= WS_CLOSE) {
		memcpy(w->control + w->ncontrol, p, n);
		w->ncontrol += n;
		return 0;
	}
	if (w->message == WS_TEXT) {
		memcpy(w->text + w->ntext, p, n);
		w->ntext += n;
		return 0;
	}
	*out = (struct ws_piece){WS_BINARY, p, n};
	return n > 0;
}

int ws_feed(struct ws_in *w, uint8_t *p, size_t n, size_t *took,
	    struct ws_piece *out)
{
	size_t at = 0, some;
	int rc = 0;

	*took = 0;
	if (w->bad)
		return -(int)w->left;
	while (!rc && (at < n || (w->in_payload && !w->left))) {
		if (!w->in_payload) {
			w->head[w->have++] = p[at++];
			if (w->have == 2 && !(w->head[1] & 0x80))
				rc = broken(w, WS_PROTOCOL); // no mask
			else if (w->have >= 2 && w->have == head_size(w))
				rc = take_head(w);
			continue;
		}
		some = (size_t)MIN(w->left, (uint64_t)(n - at));
		if (some)
			rc = take_payload(w, p + at, some, out);
		at += some;
		if (!w->left && !rc)
			rc = frame_done(w, out);
	}
	*took = at;
	return rc;
}

unsigned ws_close_code(const struct ws_piece *close)
{
	return close->n < 2 ? WS_NORMAL
			    : (unsigned)close->p[0] << 8 | close->p[1];
}

size_t ws_head(uint8_t out[WS_HEAD_MAX], enum ws_op op, size_t n)
{
	unsigned size = n < 126 ? 0 : n < 65536 ? 2 : 8;

	out[0] = (uint8_t)(0x80 | op);
	out[1] = (uint8_t)(!size ? n : size == 2 ? 126 : 127);
	for (unsigned i = 0; i < size; i++)
		out[2 + i] = (uint8_t)((uint64_t)n >> 8 * (size - 1 - i));
	return 2 + size;
}
