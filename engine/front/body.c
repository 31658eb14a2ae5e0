// Where a message's body begins and ends (RFC 9112 6 and 7), a state machine over
// framing bytes only: data is moved by the owner without being looked at.
//
//   SIZE      hex digits, 1 to 15 of them; no sign, no space, no 0x
//   EXT       after ';': ignored and not sent on, bounded
//   SIZE_LF   after the CR of the size line
//   DATA      `left` bytes follow; then the chunk's CR
//   DATA_LF   after that CR
//   TRAILERS  after the chunk of size 0: field lines, then the empty line
//
// Lines end in CRLF here too. `done` is set by the last byte of the body.
#include "head.h"

#include <errno.h>

void body_begin(struct body *b, enum framing framing, uint64_t length)
{
	*b = (struct body){.framing = framing};
	b->trailers.trailers = true;
	if (framing == FRAMING_LENGTH)
		b->left = length;
	if (framing == FRAMING_CLOSE)
		b->left = UINT64_MAX;
	b->done =
	    framing == FRAMING_NONE || (framing == FRAMING_LENGTH && !length);
}

static int hex_digit(unsigned char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static int size_byte(struct body *b, unsigned char c)
{
	int d = hex_digit(c);

	if (d >= 0) {
		if (++b->digits > 15)
			return -EBADMSG;
		b->size = b->size << 4 | (unsigned)d;
		return 0;
	}
	if (!b->digits || (c != ';' && c != '\r'))
		return -EBADMSG;
	b->state = c == ';' ? CHUNK_EXT : CHUNK_SIZE_LF;
	return 0;
}

static int ext_byte(struct body *b, unsigned char c)
{
	if (c == '\r') {
		b->state = CHUNK_SIZE_LF;
		return 0;
	}
	if ((c < 0x20 && c != '\t') || c == 0x7f)
		return -EBADMSG;
	if (++b->ext > CHUNK_EXT_MAX || ++b->ext_total > CHUNK_EXT_TOTAL)
		return -E2BIG;
	return 0;
}

static int line_end(struct body *b, unsigned char c)
{
	if (c != '\n')
		return -EBADMSG;
	b->left = b->size;
	b->state = b->size ? CHUNK_DATA : CHUNK_TRAILERS;
	b->size = 0;
	b->digits = b->ext = 0;
	return 0;
}

static int chunk_byte(struct body *b, unsigned char c)
{
	switch (b->state) {
	case CHUNK_SIZE:
		return size_byte(b, c);
	case CHUNK_EXT:
		return ext_byte(b, c);
	case CHUNK_SIZE_LF:
		return line_end(b, c);
	case CHUNK_DATA:
		b->state = CHUNK_DATA_LF;
		return c == '\r' ? 0 : -EBADMSG;
	case CHUNK_DATA_LF:
		b->state = CHUNK_SIZE;
		return c == '\n' ? 0 : -EBADMSG;
	case CHUNK_TRAILERS:
		break;
	}
	return -EBADMSG;
}

ssize_t body_frame(struct body *b, const char *p, size_t n)
{
	size_t i = 0;
	ssize_t took;
	int rc = 0;

	if (b->framing != FRAMING_CHUNKED)
		return 0;
	while (i < n && !b->left && b->state != CHUNK_TRAILERS && !rc)
		rc = chunk_byte(b, (unsigned char)p[i++]);
	if (rc)
		return rc;
	if (b->left || b->done || b->state != CHUNK_TRAILERS)
		return (ssize_t)i;
	took = head_in_feed(&b->trailers, p + i, n - i);
	if (took < 0)
		return took;
	b->done = b->trailers.done;
	return (ssize_t)i + took;
}

void body_took(struct body *b, uint64_t n)
{
	if (b->framing == FRAMING_CLOSE)
		return;
	b->left -= n;
	if (b->framing == FRAMING_LENGTH && !b->left)
		b->done = true;
}

void body_end(struct body *b)
{
	head_in_reset(&b->trailers);
}
