// The server of the Unix socket: listener, credentials; and for both servers the
// parsing of targets, and plain answers.
//
// evhttp does the framing. What it leaves open is closed here: its limits are
// all set; the peer's user is checked against the socket's rule; the path is
// split at '/' before anything is decoded (identifiers hold %2F); NUL, control
// characters and broken percent signs are refused. What stays accepted by
// evhttp (duplicate Content-Length and the like) is harmless for a server that
// ends the connection's bytes itself and forwards to nobody.
#include "http_internal.h"

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>

#define ACCEPT_PAUSE_MS 200

// --- the listener ------------------------------------------------------------

static int socket_addr(const char *path, struct sockaddr_un *sa, struct err *e)
{
	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(sa->sun_path))
		return err_set(e, -ENAMETOOLONG,
			       "the socket path %s is longer than %zu bytes; "
			       "choose a shorter one with --socket",
			       path, sizeof(sa->sun_path) - 1);
	strcpy(sa->sun_path, path);
	return 0;
}

// Removes a socket file that nobody listens on.
static int remove_stale(const char *path, const struct sockaddr_un *sa,
			struct err *e)
{
	cleanup_fd int fd = -1;
	struct stat st;

	if (lstat(path, &st)) {
		if (errno == ENOENT)
			return 0;
		return err_sys(e, "look at %s", path);
	}
	if (!S_ISSOCK(st.st_mode))
		return err_set(e, -EEXIST,
			       "%s exists and is not a socket; remove it or "
			       "choose another path with --socket",
			       path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_sys(e, "make a socket");
	if (!connect(fd, (const struct sockaddr *)sa, sizeof(*sa)))
		return err_set(e, -EADDRINUSE,
			       "another process listens on %s; stop it or "
			       "choose another path with --socket",
			       path);
	if (errno != ECONNREFUSED)
		return err_sys(e, "probe %s", path);
	if (unlink(path))
		return err_sys(e, "remove the stale socket %s", path);
	return 0;
}

static int listen_on(const struct http_config *cfg, struct err *e)
{
	cleanup_fd int fd = -1;
	struct sockaddr_un sa;
	mode_t old;
	int rc;

	rc = socket_addr(cfg->path, &sa, e);
	if (!rc)
		rc = remove_stale(cfg->path, &sa, e);
	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_sys(e, "make a socket");
	old = umask(0177); // never open wider, not even for a moment
	rc = bind(fd, (const struct sockaddr *)&sa, sizeof(sa));
	if (rc)
		rc = err_sys(e, "bind the socket %s", cfg->path);
	umask(old);
	if (rc)
		return rc;
	if (cfg->has_group && (lchown(cfg->path, (uid_t)-1, cfg->group) ||
			       chmod(cfg->path, 0660)))
		return err_sys(e, "give %s to group %u", cfg->path,
			       (unsigned)cfg->group);
	if (listen(fd, 512))
		return err_sys(e, "listen on %s", cfg->path);
	return fd_steal(&fd);
}

// evhttp takes the listener's callback argument for itself, so its error
// callback cannot carry the server. There is one server in a process.
static struct http_server *accepting;

static void accept_again(void *ctx)
{
	struct http_server *s = ctx;

	if (!s->stopped)
		evconnlistener_enable(s->listener);
}

// Out of descriptors: libevent would spin on the level-triggered listener.
static void accept_error(struct evconnlistener *lev, void *ctx)
{
	int err = errno;

	(void)ctx;
	log_warn("accepting a connection failed: %s; trying again in %d ms",
		 strerror(err), ACCEPT_PAUSE_MS);
	evconnlistener_disable(lev);
	if (accepting)
		eng_timer_set(accepting->accept_timer, ACCEPT_PAUSE_MS);
}

// --- who is it --------------------------------------------------------------

static bool in_group(int fd, gid_t gid, gid_t want)
{
	gid_t groups[64];
	socklen_t len = sizeof(groups);

	if (gid == want)
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len))
		return false;
	for (size_t i = 0; i < len / sizeof(groups[0]); i++) {
		if (groups[i] == want)
			return true;
	}
	return false;
}

static bool peer_allowed(struct http_server *s, int fd, struct http_req *r)
{
	struct ucred uc;
	socklen_t len = sizeof(uc);

	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &uc, &len))
		return false;
	r->uid = uc.uid;
	r->gid = uc.gid;
	if (uc.uid == 0 || uc.uid == geteuid())
		return true;
	return s->has_group && in_group(fd, uc.gid, s->group);
}

// --- parsing -----------------------------------------------------------------

// Decodes in place. Refuses broken escapes and what no name may hold.
static bool decode(char *s)
{
	char *w = s;

	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '%') {
			int hi = util_hex_digit(s[1]);
			int lo = hi < 0 ? -1 : util_hex_digit(s[2]);

			if (lo < 0)
				return false;
			c = (unsigned char)(hi << 4 | lo);
			s += 2;
		}
		if (c < 0x20 || c == 0x7f)
			return false;
		*w++ = (char)c;
	}
	*w = '\0';
	return true;
}

static bool parse_path(struct http_req *r, char *path)
{
	char *save = path;

	if (*save++ != '/')
		return false;
	while (save) {
		char *seg = strsep(&save, "/");

		if (r->nseg == HTTP_MAX_SEGS || !decode(seg))
			return false;
		r->seg[r->nseg++] = seg;
	}
	return true;
}

static bool parse_query(struct http_req *r, char *query)
{
	while (query) {
		char *v = strsep(&query, "&"), *k;

		if (!*v)
			continue;
		k = strsep(&v, "=");
		if (r->nquery == HTTP_MAX_QUERY || !decode(k) ||
		    (v && !decode(v)))
			return false;
		r->query[r->nquery].k = k;
		r->query[r->nquery++].v = v ? v : k + strlen(k);
	}
	return true;
}

bool http_parse_target(struct http_req *r, const char *uri)
{
	char *query;

	if (strncasecmp(uri, "http://", 7) == 0) { // absolute form
		uri = strchr(uri + 7, '/');
		if (!uri)
			uri = "/";
	}
	r->text = strdup(uri);
	if (!r->text)
		abort();
	query = strchr(r->text, '?');
	if (query)
		*query++ = '\0';
	return parse_path(r, r->text) && parse_query(r, query);
}

static enum http_method method_of(struct evhttp_request *ev)
{
	switch (evhttp_request_get_command(ev)) {
	case EVHTTP_REQ_GET:
		return HTTP_GET;
	case EVHTTP_REQ_POST:
		return HTTP_POST;
	case EVHTTP_REQ_PUT:
		return HTTP_PUT;
	case EVHTTP_REQ_PATCH:
		return HTTP_PATCH;
	default:
		return HTTP_DELETE; // the only other one let in
	}
}

void http_request_id(char out[HTTP_ID])
{
	uint8_t b[16];

	util_random(b, sizeof(b));
	snprintf(out, HTTP_ID,
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
		 "%02x%02x%02x%02x%02x%02x",
		 b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9],
		 b[10], b[11], b[12], b[13], b[14], b[15]);
}

static struct http_req *request_of(struct http_server *s,
				   struct evhttp_request *ev)
{
	struct evkeyvalq *h = evhttp_request_get_input_headers(ev);
	struct evbuffer *in = evhttp_request_get_input_buffer(ev);
	struct http_req *r = calloc(1, sizeof(*r));
	const char *up = evhttp_find_header(h, "Upgrade");

	if (!r)
		abort();
	r->srv = s;
	r->ev = ev;
	r->method = method_of(ev);
	r->t0 = s->last_read_ns ? s->last_read_ns : util_now_ns();
	r->body_len = evbuffer_get_length(in);
	r->body = r->body_len ? (const void *)evbuffer_pullup(in, -1) : "";
	if (up && strlen(up) < sizeof(r->upgrade))
		strcpy(r->upgrade, up);
	http_request_id(r->id);
	return r;
}

void http_req_free(struct http_req *r)
{
	if (!r)
		return;
	free(r->text);
	free(r);
}

// evhttp drops a request's connection pointer when the connection died.
static bool fd_of(struct evhttp_request *ev, int *fd)
{
	struct evhttp_connection *c = evhttp_request_get_connection(ev);

	if (!c)
		return false;
	*fd = bufferevent_getfd(evhttp_connection_get_bufferevent(c));
	return true;
}

static void on_request(struct evhttp_request *ev, void *ctx)
{
	struct http_server *s = ctx;
	struct http_req *r;
	int fd = -1;

	eng_turn_begin(s->loop, "http request");
	r = request_of(s, ev);
	if (!fd_of(ev, &fd) || !peer_allowed(s, fd, r))
		http_error(r, 403, "AccessDeniedException", 0, NULL,
			   "this user may not use the socket; thawd's user, "
			   "root and members of --socket-group may");
	else if (!http_parse_target(r, evhttp_request_get_uri(ev)))
		http_error(r, 400, "ValidationException", 0, NULL,
			   HTTP_BAD_TARGET);
	else
		s->cfg.handle(s->cfg.ctx, r);
	eng_turn_end(s->loop);
}

// Stamps the moment at which bytes came in: evhttp parses and calls
// on_request() within the same read, so this is the request's T0.
static void on_bytes(struct evbuffer *b, const struct evbuffer_cb_info *info,
		     void *ctx)
{
	struct http_server *s = ctx;

	(void)b;
	if (info->n_added)
		s->last_read_ns = util_now_ns();
}

static struct bufferevent *make_bev(struct event_base *base, void *ctx)
{
	struct bufferevent *bev = bufferevent_socket_new(base, -1, 0);

	if (bev)
		evbuffer_add_cb(bufferevent_get_input(bev), on_bytes, ctx);
	return bev;
}

// --- life -----------------------------------------------------------------

static int start(struct http_server *s, struct err *e)
{
	int fd = listen_on(&s->cfg, e);

	if (fd < 0)
		return fd;
	s->listener = evconnlistener_new(
	    eng_loop_base(s->loop), NULL, NULL,
	    LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, fd);
	if (!s->listener) {
		close(fd);
		return err_set(e, -ENOMEM, "make the listener");
	}
	s->http = evhttp_new(eng_loop_base(s->loop));
	s->accept_timer =
	    eng_timer_create(s->loop, accept_again, s, "http accept");
	if (!s->http || !s->accept_timer)
		return err_set(e, -ENOMEM, "make the HTTP server");
	evhttp_set_max_headers_size(s->http, HTTP_MAX_HEAD);
	evhttp_set_max_body_size(s->http, HTTP_MAX_BODY);
	evhttp_set_timeout(s->http, HTTP_IDLE_S);
	evhttp_set_allowed_methods(
	    s->http, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_PUT |
			 EVHTTP_REQ_DELETE | EVHTTP_REQ_PATCH);
	evhttp_set_default_content_type(s->http, NULL);
	evhttp_set_bevcb(s->http, make_bev, s);
	evhttp_set_gencb(s->http, on_request, s);
	if (!evhttp_bind_listener(s->http, s->listener))
		return err_set(e, -ENOMEM, "bind the listener");
	evconnlistener_set_error_cb(s->listener, accept_error);
	s->bound = true;
	accepting = s;
	return 0;
}

int http_server_create(struct http_server **out, struct eng_loop *l,
		       const struct http_config *cfg, struct err *e)
{
	struct http_server *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return err_set(e, -ENOMEM, "make the HTTP server");
	s->loop = l;
	s->cfg = *cfg;
	s->has_group = cfg->has_group;
	s->group = cfg->group;
	s->path = strdup(cfg->path);
	rc = s->path ? start(s, e) : err_set(e, -ENOMEM, "make the server");
	if (rc) {
		http_server_destroy(s);
		return rc;
	}
	*out = s;
	return 0;
}

struct eng_loop *http_loop(const struct http_server *s)
{
	return s->loop;
}

const char *http_library_version(void)
{
	return event_get_version();
}

void http_server_stop(struct http_server *s)
{
	if (s->stopped)
		return;
	s->stopped = true;
	unlink(s->path);
	evconnlistener_disable(s->listener);
}

void http_server_destroy(struct http_server *s)
{
	if (!s)
		return;
	if (s->bound)
		http_server_stop(s);
	accepting = NULL;
	eng_timer_destroy(s->accept_timer);
	http_streams_drop(s);
	if (s->http)
		evhttp_free(s->http); // frees a bound listener too
	if (s->listener && !s->bound)
		evconnlistener_free(s->listener);
	free(s->path);
	free(s);
}

// --- answers ----------------------------------------------------------------

const char *http_method_name(enum http_method m)
{
	static const char *const names[] = {[HTTP_GET] = "GET",
					    [HTTP_POST] = "POST",
					    [HTTP_PUT] = "PUT",
					    [HTTP_PATCH] = "PATCH",
					    [HTTP_DELETE] = "DELETE"};

	return names[m];
}

const char *http_query(const struct http_req *r, const char *k)
{
	for (unsigned i = 0; i < r->nquery; i++) {
		if (strcmp(r->query[i].k, k) == 0)
			return r->query[i].v;
	}
	return NULL;
}

const char *http_reason(int status)
{
	switch (status) {
	case 200:
		return "OK";
	case 201:
		return "Created";
	case 204:
		return "No Content";
	case 400:
		return "Bad Request";
	case 402:
		return "Payment Required";
	case 403:
		return "Forbidden";
	case 404:
		return "Not Found";
	case 405:
		return "Method Not Allowed";
	case 409:
		return "Conflict";
	case 413:
		return "Content Too Large";
	case 417:
		return "Expectation Failed";
	case 429:
		return "Too Many Requests";
	case 431:
		return "Request Header Fields Too Large";
	case 501:
		return "Not Implemented";
	case 502:
		return "Bad Gateway";
	case 503:
		return "Service Unavailable";
	case 504:
		return "Gateway Timeout";
	case 505:
		return "HTTP Version Not Supported";
	default:
		return "Internal Server Error";
	}
}

char *http_json_text(json_t *j)
{
	char *t =
	    j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL;

	json_decref(j);
	return t;
}

static void answer_evhttp(struct http_req *r, const struct http_answer *an)
{
	struct evkeyvalq *h = evhttp_request_get_output_headers(r->ev);
	struct evbuffer *out = evhttp_request_get_output_buffer(r->ev);
	char n[16];

	evhttp_add_header(h, "x-amzn-RequestId", r->id);
	if (an->type)
		evhttp_add_header(h, "x-amzn-ErrorType", an->type);
	if (an->retry_after_s) {
		snprintf(n, sizeof(n), "%u", an->retry_after_s);
		evhttp_add_header(h, "Retry-After", n);
	}
	if (an->json) {
		evhttp_add_header(h, "Content-Type", "application/json");
		evbuffer_add(out, an->json, strlen(an->json));
	}
	evhttp_send_reply(r->ev, an->status, http_reason(an->status), NULL);
}

static void answer(struct http_req *r, const struct http_answer *an)
{
	if (r->ev)
		answer_evhttp(r, an);
	else if (r->conn)
		http_conn_answer(r, an);
	http_req_free(r);
}

void http_reply(struct http_req *r, int status, json_t *body)
{
	http_reply_text(r, status, http_json_text(body));
}

void http_reply_text(struct http_req *r, int status, char *json)
{
	answer(r, &(struct http_answer){.status = status, .json = json});
	free(json);
}

json_t *http_error_body(const char *message, json_t *extra)
{
	json_t *j = extra ? extra : json_object();
	json_t *text = json_string(message);

	if (!text) { // quotes bytes of a request or guest, or is cut short
		cleanup_free char *copy = strdup(message);

		for (char *p = copy; p && *p; p++) {
			if (*p & 0x80)
				*p = '?';
		}
		text = json_string(copy);
	}
	json_object_set_new(j, "message", text);
	return j;
}

void http_error(struct http_req *r, int status, const char *type,
		unsigned retry_after_s, json_t *extra, const char *message)
{
	cleanup_free char *json =
	    http_json_text(http_error_body(message, extra));

	answer(r, &(struct http_answer){.status = status,
					.type = type,
					.retry_after_s = retry_after_s,
					.json = json});
}
