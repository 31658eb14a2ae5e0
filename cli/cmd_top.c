// thaw top: what runs and what it takes. On a terminal a table that is drawn
// anew, like top(1)'s; else one snapshot.
//
// Processor time is of the cell's process, from /proc, which needs no question to
// thawd; memory and disk are asked for, one microVM at a time, and on a terminal
// only of those that fit on it.
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "cli.h"

enum {
	INTERVAL_DEFAULT_S = 2,
	INTERVAL_MAX_S = 3600,
	SNAPSHOT_MS = 300, // between a snapshot's two looks at processor time
	HEAD_LINES = 3,
};

struct sample { // one microVM's processor time
	int64_t pid;
	uint64_t ticks, when_ns;
	double percent; // of one processor, since the last look; < 0: unknown
	bool seen;
};

struct row {
	json_t *vm; // borrowed
	double cpu;
	double memory; // < 0: not asked
};

struct top {
	struct cli *c;
	struct sample *samples;
	size_t nsamples;
	json_t *list;
	struct row *rows;
	size_t nrows;
	bool by_memory, by_name;
};

// --- processor time ------------------------------------------------------

// Clock ticks of a process and its threads; false when there is none.
static bool read_ticks(int64_t pid, uint64_t *ticks)
{
	char path[64], text[1024], *p;
	unsigned long user, sys;
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%lld/stat", (long long)pid);
	f = fopen(path, "re");
	if (!f)
		return false;
	n = fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n] = '\0';
	p = strrchr(text, ')'); // the name may hold anything
	if (!p || sscanf(p + 1,
			 " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u "
			 "%lu %lu",
			 &user, &sys) != 2)
		return false;
	*ticks = (uint64_t)user + sys;
	return true;
}

static struct sample *find_sample(struct top *t, int64_t pid)
{
	struct sample *more;

	for (size_t i = 0; i < t->nsamples; i++)
		if (t->samples[i].pid == pid)
			return &t->samples[i];
	more = reallocarray(t->samples, t->nsamples + 1, sizeof(*more));
	if (!more)
		abort();
	t->samples = more;
	more[t->nsamples] = (struct sample){.pid = pid, .percent = -1};
	return &more[t->nsamples++];
}

static double look(struct top *t, int64_t pid)
{
	struct sample *s;
	uint64_t ticks, now = util_now_ns();
	double seconds;

	if (pid <= 0 || !read_ticks(pid, &ticks))
		return -1;
	s = find_sample(t, pid);
	s->seen = true;
	seconds = (double)(now - s->when_ns) / 1e9;
	if (s->when_ns && ticks >= s->ticks && seconds > 0.05)
		s->percent = 100.0 * (double)(ticks - s->ticks) /
			     ((double)sysconf(_SC_CLK_TCK) * seconds);
	s->ticks = ticks;
	s->when_ns = now;
	return s->percent;
}

// Those of processes that have ended.
static void forget_samples(struct top *t)
{
	size_t kept = 0;

	for (size_t i = 0; i < t->nsamples; i++) {
		if (!t->samples[i].seen)
			continue;
		t->samples[kept] = t->samples[i];
		t->samples[kept++].seen = false;
	}
	t->nsamples = kept;
}

// --- rows ----------------------------------------------------------------

static const json_t *own(const json_t *vm)
{
	return json_object_get(vm, "thaw");
}

// Inspect's figures go into the row's object, for --json as well.
static void ask_usage(struct top *t, struct row *r)
{
	char *path =
	    cli_path(CLI_OWN "/microvms/%s", cli_str(r->vm, "microvmId"));
	const json_t *usage;
	json_t *full = NULL;

	if (!cli_try(t->c, path, &full)) {
		usage = json_object_get(own(full), "usage");
		r->memory = (double)cli_int(usage, "privateBytes", -1);
		json_object_set(json_object_get(r->vm, "thaw"), "usage",
				(json_t *)usage);
		json_decref(full);
	}
	free(path);
}

static int by_cpu(const void *a, const void *b)
{
	const struct row *x = a, *y = b;

	if (x->cpu != y->cpu)
		return x->cpu > y->cpu ? -1 : 1;
	return strcmp(cli_str(x->vm, "microvmId"), cli_str(y->vm, "microvmId"));
}

static int by_memory(const void *a, const void *b)
{
	const struct row *x = a, *y = b;

	return x->memory != y->memory ? (x->memory > y->memory ? -1 : 1)
				      : by_cpu(a, b);
}

static int by_name(const void *a, const void *b)
{
	const struct row *x = a, *y = b;
	int d =
	    strcmp(cli_str(own(x->vm), "name"), cli_str(own(y->vm), "name"));

	return d ? d : by_cpu(a, b);
}

// Lists and sorts; usage of at most `most` of them is asked for.
static int gather(struct top *t, size_t most)
{
	json_t *vm;
	size_t i;
	int code;

	json_decref(t->list);
	t->list = NULL;
	free(t->rows);
	t->rows = NULL;
	t->nrows = 0;
	code = cli_list(t->c, "top", CLI_AWS "/microvms", &t->list);
	if (code)
		return code;
	t->rows = calloc(json_array_size(t->list) + 1, sizeof(*t->rows));
	if (!t->rows)
		abort();
	json_array_foreach(t->list, i, vm)
	{
		struct row *r = &t->rows[t->nrows];

		if (!strcmp(cli_str(vm, "state"), "TERMINATED"))
			continue;
		t->nrows++;
		*r = (struct row){vm, look(t, cli_int(own(vm), "pid", 0)), -1};
		if (t->by_memory)
			ask_usage(t, r);
	}
	forget_samples(t);
	qsort(t->rows, t->nrows, sizeof(*t->rows),
	      t->by_memory ? by_memory
	      : t->by_name ? by_name
			   : by_cpu);
	for (i = 0; !t->by_memory && i < MIN(most, t->nrows); i++)
		ask_usage(t, &t->rows[i]);
	return 0;
}

static const char *bytes_text(const struct row *r, const char *key, char *buf,
			      size_t cap)
{
	const json_t *usage = json_object_get(own(r->vm), "usage");

	return cli_mib_text((double)cli_int(usage, key, -1), buf, cap);
}

static void add_row(struct cli_table *tab, const struct row *r)
{
	const json_t *o = own(r->vm);
	double when = json_number_value(json_object_get(r->vm, "startedAt"));
	char id[64], mem[32], disk[32], ago[64];

	cli_table_add(
	    tab, 0, "%s",
	    cli_short_id(cli_str(r->vm, "microvmId"), id, sizeof(id)));
	cli_table_add(tab, 1, "%s", cli_str(o, "name"));
	cli_table_add(tab, 2, "%s", cli_image_name(cli_str(r->vm, "imageArn")));
	cli_table_add(tab, 3, "%s", cli_str(r->vm, "state"));
	if (r->cpu < 0)
		cli_table_add(tab, 4, "-");
	else
		cli_table_add(tab, 4, "%.1f%%", r->cpu);
	cli_table_add(tab, 5, "%s",
		      bytes_text(r, "privateBytes", mem, sizeof(mem)));
	cli_table_add(tab, 6, "%lld MiB",
		      (long long)cli_int(o, "memoryMiB", 0));
	cli_table_add(tab, 7, "%s",
		      bytes_text(r, "overlayBytes", disk, sizeof(disk)));
	cli_table_add(tab, 8, "%s", cli_ago(when, ago, sizeof(ago)));
}

static void print_rows(struct top *t, size_t most)
{
	static const char *const heads[] = {"ID",    "NAME", "IMAGE",
					    "STATE", "CPU",  "OWN",
					    "OF",    "DISK", "STARTED"};
	struct cli_table tab;

	cli_table_init(&tab, heads, ARRAY_SIZE(heads));
	for (size_t i = 0; i < MIN(most, t->nrows); i++)
		add_row(&tab, &t->rows[i]);
	cli_table_print(&tab, !cli_flag(t->c, "no-header"));
}

// --- one snapshot --------------------------------------------------------

static void print_json(struct top *t)
{
	json_t *out = json_array();

	for (size_t i = 0; i < t->nrows; i++) {
		if (t->rows[i].cpu >= 0)
			json_object_set_new(
			    json_object_get(t->rows[i].vm, "thaw"),
			    "cpuPercent", json_real(t->rows[i].cpu));
		json_array_append(out, t->rows[i].vm);
	}
	cli_print_json(out, false);
	json_decref(out);
}

static int snapshot(struct top *t)
{
	int code = gather(t, 0);

	if (code)
		return code;
	usleep(SNAPSHOT_MS * 1000);
	code = gather(t, SIZE_MAX);
	if (code)
		return code;
	if (t->c->json)
		print_json(t);
	else
		print_rows(t, SIZE_MAX);
	return 0;
}

// --- live ----------------------------------------------------------------

static struct termios saved;
static bool drawn;

// The terminal as it was, whatever ends us.
static void leave(void)
{
	if (!drawn)
		return;
	drawn = false;
	fputs("\033[?7h\033[?25h\033[?1049l", stdout);
	fflush(stdout);
	tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
}

static void enter(void)
{
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &saved) == 0) {
		raw = saved;
		raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
		tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
	}
	drawn = true;
	atexit(leave);
	// Another screen, no cursor, no wrapping.
	fputs("\033[?1049h\033[?25l\033[?7l", stdout);
}

static size_t room(void)
{
	struct winsize ws;
	size_t rows = 24;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_row)
		rows = ws.ws_row;
	return rows > HEAD_LINES + 1 ? rows - HEAD_LINES - 1 : 1;
}

static void print_head(struct top *t)
{
	json_t *host = NULL;
	const json_t *mem, *cpus, *states;

	if (cli_try(t->c, CLI_OWN "/host", &host))
		host = json_object();
	mem = json_object_get(host, "memory");
	cpus = json_object_get(host, "vcpus");
	states = json_object_get(host, "microvms");
	printf("memory: %lld MiB committed, %lld MiB free   vcpus: %lld of "
	       "%lld   running %lld, suspended %lld, parked %lld\n"
	       "sorted by %s; c, m or n: by cpu, memory, name; q: quit\n",
	       (long long)cli_int(mem, "committedMiB", 0),
	       (long long)cli_int(mem, "freeMiB", 0),
	       (long long)cli_int(cpus, "committed", 0),
	       (long long)cli_int(cpus, "total", 0),
	       (long long)cli_int(states, "RUNNING", 0),
	       (long long)cli_int(states, "SUSPENDED", 0),
	       (long long)cli_int(states, "PARKED", 0),
	       t->by_memory ? "memory"
	       : t->by_name ? "name"
			    : "cpu");
	json_decref(host);
}

static bool take_key(struct top *t, int key)
{
	if (key == 'q' || key == 'Q' || key == 3 || key == 4)
		return false;
	if (key == 'c' || key == 'm' || key == 'n') {
		t->by_memory = key == 'm';
		t->by_name = key == 'n';
	}
	return true;
}

// Until the next drawing is due. False: the end.
static bool rest(struct top *t, int sig, uint64_t interval_s)
{
	struct pollfd p[2] = {{STDIN_FILENO, POLLIN, 0}, {sig, POLLIN, 0}};
	struct signalfd_siginfo si;
	unsigned char key = 'q';

	if (poll(p, 2, (int)interval_s * 1000) < 0 && errno != EINTR)
		return false;
	if (p[1].revents && read(sig, &si, sizeof(si)) == sizeof(si))
		return si.ssi_signo == SIGWINCH;
	if (p[0].revents)
		return read(STDIN_FILENO, &key, 1) == 1 && take_key(t, key);
	return true;
}

static int live(struct top *t, uint64_t interval_s)
{
	sigset_t set;
	int sig, code;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGWINCH);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sig = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	code = gather(t, 0);
	if (code)
		return code;
	enter();
	do {
		size_t most = room();

		// Before the screen is cleared: no flicker.
		code = gather(t, most);
		if (code)
			break;
		fputs("\033[H\033[J", stdout);
		print_head(t);
		print_rows(t, most);
		fflush(stdout);
	} while (rest(t, sig, interval_s));
	leave();
	// Its message went to the screen that is gone: once more on this one.
	if (code)
		cli_list(t->c, "top", CLI_AWS "/microvms", &t->list);
	close(sig);
	return code;
}

int cmd_top(struct cli *c)
{
	const char *sort = cli_value(c, "sort");
	uint64_t interval_s = INTERVAL_DEFAULT_S;
	struct top t = {.c = c};
	int code = cli_number(c, "interval", INTERVAL_MAX_S, &interval_s);

	if (code)
		return code;
	if (!interval_s)
		return cli_usage(c, "--interval is 1 s at least");
	if (sort && strcmp(sort, "cpu") != 0 && strcmp(sort, "memory") != 0 &&
	    strcmp(sort, "name") != 0)
		return cli_usage(c, "--sort '%s' is none of cpu, memory, name",
				 sort);
	t.by_memory = sort && !strcmp(sort, "memory");
	t.by_name = sort && !strcmp(sort, "name");
	code = c->json || !isatty(STDOUT_FILENO) || !isatty(STDIN_FILENO)
		   ? snapshot(&t)
		   : live(&t, interval_s);
	json_decref(t.list);
	free(t.rows);
	free(t.samples);
	return code;
}
