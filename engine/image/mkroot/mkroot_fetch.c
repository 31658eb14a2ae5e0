// Objects of S3. The connection, TLS and what a server sends are thaw-fetch's
// affair: a program of its own that runs as nobody, may open no file that
// others may not, and has one descriptor to write to.
#include "mkroot.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum {
	NOBODY = 65534,
	CREDENTIALS_MAX = 64 * 1024,
	FIELD_MAX = 4096, // a session token
	ANSWER_MAX = 1024,
};

struct credentials {
	char id[132], secret[132], token[FIELD_MAX];
};

static void take_field(struct credentials *c, char *line)
{
	char *eq = strchr(line, '='), *v, *end;
	const struct {
		const char *name;
		char *to;
		size_t cap;
	} fields[] = {{"aws_access_key_id", c->id, sizeof(c->id)},
		      {"aws_secret_access_key", c->secret, sizeof(c->secret)},
		      {"aws_session_token", c->token, sizeof(c->token)}};

	if (!eq)
		return;
	for (end = eq; end > line && isspace((unsigned char)end[-1]); end--)
		;
	*end = '\0';
	v = eq + 1 + strspn(eq + 1, " \t");
	for (end = v + strlen(v); end > v && isspace((unsigned char)end[-1]);)
		*--end = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		if (!strcmp(line, fields[i].name))
			snprintf(fields[i].to, fields[i].cap, "%s", v);
}

// [default], or the first profile where there is none of that name.
static void parse_credentials(struct credentials *c, char *text)
{
	bool mine = true, first = true, has = strstr(text, "[default]") != NULL;
	char *save = NULL;

	for (char *line = strtok_r(text, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		line += strspn(line, " \t");
		if (*line == '[') {
			mine = has ? !strncmp(line, "[default]", 9) : first;
			first = false;
		} else if (mine && *line != '#' && *line != ';') {
			take_field(c, line);
		}
	}
}

static int read_credentials(const char *path, struct credentials *c,
			    struct err *e)
{
	cleanup_fd int fd =
	    open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	cleanup_free char *text = calloc(1, CREDENTIALS_MAX + 1);
	struct stat st;
	int rc;

	if (fd < 0 || fstat(fd, &st))
		return err_sys(e, "reading the credentials in %s", path);
	if (!S_ISREG(st.st_mode) || st.st_uid != 0 || (st.st_mode & 077) ||
	    st.st_size > CREDENTIALS_MAX)
		return err_set(e, -EACCES,
			       "the credentials in %s must be a small file of "
			       "root's that nobody else may read (chmod 600)",
			       path);
	if (!text)
		return err_set(e, -ENOMEM, "out of memory");
	rc = util_pread_all(fd, text, (size_t)st.st_size, 0);
	if (rc)
		return err_set(e, rc, "reading the credentials in %s", path);
	parse_credentials(c, text);
	explicit_bzero(text, (size_t)st.st_size);
	if (!c->id[0] || !c->secret[0])
		return err_set(e, -EINVAL,
			       "%s has no aws_access_key_id and "
			       "aws_secret_access_key in [default]",
			       path);
	return 0;
}

static void fetch_child(const struct mr_opts *o, pid_t parent, int in, int out,
			int body)
{
	char max[24];
	char *const argv[] = {(char *)o->fetch,
			      "--url",
			      (char *)o->url,
			      "--region",
			      (char *)(o->region ? o->region : "us-east-1"),
			      "--max-bytes",
			      max,
			      NULL};
	char *const envp[] = {"PATH=/usr/bin:/bin", "LC_ALL=C", NULL};
	const struct rlimit fds = {64, 64},
			    file = {o->mk.max_bytes, o->mk.max_bytes};
	sigset_t empty;

	snprintf(max, sizeof(max), "%llu", (unsigned long long)o->mk.max_bytes);
	sigemptyset(&empty);
	sigprocmask(SIG_SETMASK, &empty, NULL);
	// Above what dup2 writes to, so that none is lost on the way.
	in = fcntl(in, F_DUPFD_CLOEXEC, 10);
	out = fcntl(out, F_DUPFD_CLOEXEC, 10);
	body = fcntl(body, F_DUPFD_CLOEXEC, 10);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(body, 3) < 0 ||
	    chdir("/") || setrlimit(RLIMIT_NOFILE, &fds) ||
	    setrlimit(RLIMIT_FSIZE, &file))
		_exit(126);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY)) // takes the capabilities too
		_exit(126);
	mk_die_with(parent); // setuid had made it forget
	execve(argv[0], argv, envp);
	_exit(127);
}

static int start(const struct mr_opts *o, const struct credentials *c, int body,
		 int answer, pid_t *pid, struct err *e)
{
	cleanup_fd int r = -1, w = -1;
	char text[FIELD_MAX + 300];
	pid_t self = getpid();
	int p[2], n;

	if (pipe2(p, O_CLOEXEC))
		return err_sys(e, "pipe");
	r = p[0];
	w = p[1];
	*pid = fork();
	if (*pid < 0)
		return err_sys(e, "fork");
	if (*pid == 0)
		fetch_child(o, self, r, answer, body);
	n = snprintf(text, sizeof(text), "%s\n%s\n%s\n", c->id, c->secret,
		     c->token);
	(void)util_write_all(w, text, (size_t)n); // less than a pipe holds
	explicit_bzero(text, sizeof(text));
	return 0;
}

// "ok BYTES", or "error REASON TEXT".
static int judge(const struct mr_opts *o, struct mr_shared *sh, char *text,
		 int st, struct err *e)
{
	enum img_reason reason;
	char name[64] = "";
	int n = 0;

	text[strcspn(text, "\n")] = '\0';
	if (WIFEXITED(st) && !WEXITSTATUS(st) && !strncmp(text, "ok ", 3))
		return 0;
	if (sscanf(text, "error %63s %n", name, &n) < 1 || !n)
		return err_set(
		    e, -EIO, "thaw-fetch (%s) ended without a word (%s %d)",
		    o->fetch, WIFSIGNALED(st) ? "signal" : "exit code",
		    WIFSIGNALED(st) ? WTERMSIG(st) : WEXITSTATUS(st));
	reason = img_reason_parse(name);
	return mr_fail(sh, reason ? reason : IMG_INTERNAL_PLATFORM_ERROR, 0, e,
		       reason == IMG_S3_NO_SUCH_KEY ||
			       reason == IMG_S3_NO_SUCH_BUCKET
			   ? -ENOENT
			   : -EIO,
		       "%s", text + n);
}

int mr_fetch(const struct mr_opts *o, struct mr_shared *sh,
	     struct mk_source *src, struct err *e)
{
	struct credentials c = {0};
	cleanup_fd int body = -1, answer = -1, w = -1;
	char text[ANSWER_MAX + 1];
	struct stat st_body;
	size_t len = 0;
	int p[2], st, rc = 0;
	ssize_t n;
	pid_t pid = -1;

	if (o->credentials)
		rc = read_credentials(o->credentials, &c, e);
	if (rc) {
		sh->reason = IMG_S3_ACCESS_DENIED;
		return rc;
	}
	body = open(o->mk.work, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (body < 0 || pipe2(p, O_CLOEXEC))
		return err_sys(e, "making a file in %s", o->mk.work);
	answer = p[0];
	w = p[1];
	rc = start(o, &c, body, w, &pid, e);
	explicit_bzero(&c, sizeof(c));
	if (rc)
		return rc;
	fd_close(&w);
	rc = mr_wait(pid, &st, e);
	if (rc)
		return rc;
	while (len < ANSWER_MAX &&
	       (n = read(answer, text + len, ANSWER_MAX - len)) > 0)
		len += (size_t)n;
	text[len] = '\0';
	rc = judge(o, sh, text, st, e);
	if (rc)
		return rc;
	if (fstat(body, &st_body) || lseek(body, 0, SEEK_SET))
		return err_sys(e, "reading the object");
	src->size = (uint64_t)st_body.st_size;
	src->fd = fd_steal(&body);
	return 0;
}
