// JSON written as text (jtext.h).
#include "jtext.h"

#include <stdlib.h>
#include <string.h>

static char *room(struct jtext *t, size_t n)
{
	if (t->cap - t->len < n) {
		t->cap = MAX(t->cap * 2, t->len + n + 1024);
		t->s = realloc(t->s, t->cap);
		if (!t->s)
			abort();
	}
	return t->s + t->len;
}

static void put(struct jtext *t, const char *p, size_t n)
{
	if (n)
		memcpy(room(t, n), p, n);
	t->len += n;
}

static void put_char(struct jtext *t, char c)
{
	*room(t, 1) = c;
	t->len++;
}

static void put_u64(struct jtext *t, uint64_t v, unsigned digits)
{
	char b[20], *p = b + sizeof(b);

	do {
		*--p = (char)('0' + v % 10);
		v /= 10;
	} while (v || p > b + sizeof(b) - digits);
	put(t, p, (size_t)(b + sizeof(b) - p));
}

// Bytes of the UTF-8 character at s; 0: there is none. Overlong forms, surrogates
// and what lies beyond U+10FFFF are none (RFC 3629).
static size_t utf8_length(const unsigned char *s)
{
	size_t n = s[0] < 0xc2	 ? 0
		   : s[0] < 0xe0 ? 2
		   : s[0] < 0xf0 ? 3
		   : s[0] < 0xf5 ? 4
				 : 0;

	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	}
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
	    (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

static void put_escape(struct jtext *t, unsigned char c)
{
	static const char hex[] = "0123456789abcdef";
	char b[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};

	if (c == '"' || c == '\\') {
		b[1] = (char)c;
		put(t, b, 2);
	} else {
		put(t, b, 6);
	}
}

static void put_text(struct jtext *t, const char *v)
{
	const unsigned char *s = (const unsigned char *)v, *from = s;

	put_char(t, '"');
	while (*s) {
		size_t n = *s >= 0x80 ? utf8_length(s) : 1;

		if (n && *s >= ' ' && *s != '"' && *s != '\\') {
			s += n;
			continue;
		}
		put(t, (const char *)from, (size_t)(s - from));
		if (n)
			put_escape(t, *s);
		else
			put_char(t, '?');
		from = ++s;
	}
	put(t, (const char *)from, (size_t)(s - from));
	put_char(t, '"');
}

static void begin(struct jtext *t, const char *key)
{
	if (t->comma)
		put_char(t, ',');
	t->comma = true;
	if (!key)
		return;
	put_char(t, '"');
	put(t, key, strlen(key));
	put(t, "\":", 2);
}

static void open_with(struct jtext *t, const char *key, char c)
{
	begin(t, key);
	put_char(t, c);
	t->comma = false;
}

static void close_with(struct jtext *t, char c)
{
	put_char(t, c);
	t->comma = true;
}

void jt_open(struct jtext *t, const char *key)
{
	open_with(t, key, '{');
}

void jt_close(struct jtext *t)
{
	close_with(t, '}');
}

void jt_open_list(struct jtext *t, const char *key)
{
	open_with(t, key, '[');
}

void jt_close_list(struct jtext *t)
{
	close_with(t, ']');
}

void jt_str(struct jtext *t, const char *key, const char *v)
{
	begin(t, key);
	put_text(t, v);
}

void jt_int(struct jtext *t, const char *key, int64_t v)
{
	begin(t, key);
	if (v < 0)
		put_char(t, '-');
	put_u64(t, v < 0 ? 0 - (uint64_t)v : (uint64_t)v, 1);
}

void jt_bool(struct jtext *t, const char *key, bool v)
{
	begin(t, key);
	put(t, v ? "true" : "false", v ? 4 : 5);
}

void jt_null(struct jtext *t, const char *key)
{
	begin(t, key);
	put(t, "null", 4);
}

void jt_hex(struct jtext *t, const char *key, const void *p, size_t n)
{
	begin(t, key);
	put_char(t, '"');
	util_hex(room(t, 2 * n + 1), p, n);
	t->len += 2 * n;
	put_char(t, '"');
}

void jt_seconds(struct jtext *t, const char *key, uint64_t ms)
{
	begin(t, key);
	put_u64(t, ms / 1000, 1);
	put_char(t, '.');
	put_u64(t, ms % 1000, 3);
}

static int put_bytes(const char *p, size_t n, void *t)
{
	put(t, p, n);
	return 0;
}

static void put_object(struct jtext *t, const json_t *v)
{
	void *it = json_object_iter((json_t *)(uintptr_t)v);

	put_char(t, '{');
	t->comma = false;
	for (; it; it = json_object_iter_next((json_t *)(uintptr_t)v, it)) {
		if (t->comma)
			put_char(t, ',');
		put_text(t, json_object_iter_key(it)); // may need escapes
		put_char(t, ':');
		t->comma = false;
		jt_json(t, NULL, json_object_iter_value(it));
	}
	close_with(t, '}');
}

void jt_json(struct jtext *t, const char *key, const json_t *v)
{
	if (json_is_integer(v)) {
		jt_int(t, key, json_integer_value(v));
		return;
	}
	begin(t, key);
	if (!v)
		put(t, "{}", 2);
	else if (json_is_object(v))
		put_object(t, v);
	else if (json_dump_callback(v, put_bytes, t,
				    JSON_COMPACT | JSON_ENCODE_ANY |
					JSON_REAL_PRECISION(15)))
		abort(); // only memory can fail
}

char *jt_take(struct jtext *t)
{
	put_char(t, '\0');
	t->len = t->cap = 0;
	t->comma = false;
	return ptr_steal(t->s);
}

const char **jt_texts(const json_t *list)
{
	size_t n = json_array_size(list);
	const char **out = calloc(n + 1, sizeof(*out));

	if (!out)
		abort();
	for (size_t i = 0; i < n; i++)
		out[i] = json_string_value(json_array_get(list, i));
	return out;
}
