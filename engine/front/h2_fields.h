// Fields between nghttp2 and the parser of HTTP/1.1, both ways; what h2*.c and
// h2guest.c share.
#ifndef THAW_FRONT_H2_FIELDS_H
#define THAW_FRONT_H2_FIELDS_H

#include "head.h"

#include <nghttp2/nghttp2.h>

// --- to the parser ---------------------------------------------------------------

// A block of fields as lines of text.
struct h2_text {
	struct head_out lines;
	unsigned n;
	bool bad, too_large;
};

// Counts one field and says whether it may be looked at: it is within HEAD_FIELDS
// and HEAD_MAX (`more` bytes are held elsewhere) and without control characters.
bool h2_text_admit(struct h2_text *t, const uint8_t *name, size_t nn,
		   const uint8_t *value, size_t vn, size_t more);
void h2_text_put(struct h2_text *t, const uint8_t *name, size_t nn,
		 const uint8_t *value, size_t vn);
void h2_text_free(struct h2_text *t); // empty afterwards
// Collects a head's or trailers' text, which must end with it; it is freed.
bool h2_text_whole(struct head_in *in, struct head_out *text);

// --- from a head -------------------------------------------------------------------

// For nghttp2_submit_*(); the strings are borrowed.
struct h2_pairs {
	nghttp2_nv nv[HEAD_FIELDS + 7]; // and :method and so on
	size_t n;
};

void h2_pair(struct h2_pairs *p, const char *name, const char *value);
// All that are not dropped. Names to lower case, in place: a head is its
// receiver's to spoil.
void h2_pairs_of(struct h2_pairs *p, const struct head *h);

// Content-Length, if the head has one; its digits go to text.
void h2_pair_length(struct h2_pairs *p, const struct head *h, char text[24]);

#endif
