// Floor programs: one line to their standard input, one line back.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>

#include "bench.h"

int proc_start(struct proc *p, const char *bin_dir, char *const argv[],
	       struct err *e)
{
	char exe[600];
	int in[2], out[2];

	snprintf(exe, sizeof(exe), "%s/%s", bin_dir, argv[0]);
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		return err_sys(e, "cannot make pipes");
	p->pid = fork();
	if (p->pid < 0)
		return err_sys(e, "cannot fork");
	if (p->pid == 0) {
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execv(exe, argv);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	p->to = fdopen(in[1], "w");
	p->from = fdopen(out[0], "r");
	if (!p->to || !p->from)
		return err_set(e, -ENOMEM, "no memory for pipes");
	return 0;
}

int proc_ask(struct proc *p, const char *line, char *answer, size_t cap,
	     uint64_t *t0, struct err *e)
{
	if (t0)
		*t0 = util_now_ns();
	if (fprintf(p->to, "%s\n", line) < 0 || fflush(p->to) ||
	    !fgets(answer, (int)cap, p->from))
		return err_set(e, -EIO, "a floor program ended at \"%s\"",
			       line);
	answer[strcspn(answer, "\n")] = '\0';
	if (strncmp(answer, "ERR", 3) == 0)
		return err_set(e, -EIO, "a floor program: \"%s\": %s", line,
			       answer);
	return 0;
}

void proc_stop(struct proc *p)
{
	if (p->pid <= 0)
		return;
	fclose(p->to);
	fclose(p->from);
	while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR)
		;
	p->pid = 0;
}

int floor_start(struct proc *p, const char *bin_dir, unsigned mem_mib,
		const char *cmdline, struct err *e)
{
	char elf[600], mem[16], text[256];
	char *argv[] = {(char[]){"thaw-bench-floor"}, elf, mem, text, NULL};

	snprintf(elf, sizeof(elf), "%s/ring3.elf", bin_dir);
	snprintf(mem, sizeof(mem), "%uM", mem_mib);
	snprintf(text, sizeof(text), "%s", cmdline);
	return proc_start(p, bin_dir, argv, e);
}
