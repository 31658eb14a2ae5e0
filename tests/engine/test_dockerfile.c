// Reading Dockerfiles: lines, stages and steps as buildah counts them, and what
// is refused with its line.
#include "dockerfile.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

static struct dockerfile parsed(const char *text)
{
	struct dockerfile d;
	struct err e = ERR_INIT;
	unsigned line;

	cr_assert(dockerfile_parse(&d, text, strlen(text), &line, &e) == 0,
		  "%s", e.msg);
	cr_assert(line == 0);
	return d;
}

static void refused(const char *text, unsigned line, const char *why)
{
	struct dockerfile d;
	struct err e = ERR_INIT;
	unsigned got = 99;

	cr_expect(dockerfile_parse(&d, text, strlen(text), &got, &e) ==
		  -EINVAL);
	cr_expect(got == line, "line %u, not %u, of: %s", got, line, text);
	cr_expect(strstr(e.msg, why) != NULL, "'%s' in: %s", why, e.msg);
	cr_expect(d.n == 0 && !d.instr && !d.mem);
}

static void step(const struct dockerfile *d, unsigned stage, unsigned n,
		 unsigned line, const char *text)
{
	const struct dockerfile_instr *in = dockerfile_step(d, stage, n);

	cr_assert(in != NULL);
	cr_expect(in->line == line, "line %u: %s", in->line, in->text);
	cr_expect_str_eq(in->text, text);
}

Test(dockerfile, stages_steps_lines)
{
	struct dockerfile d = parsed("\xef\xbb\xbf# a comment\n"
				     "ARG TAG=1\n"
				     "\n"
				     "FROM x:$TAG AS a\r\n"
				     "run echo a && \\\n"
				     "# within\n"
				     "\n"
				     "   echo b \\  \n"
				     "  c\n"
				     "FROM y\n"
				     "  COPY --from=a /b \\\n"
				     "\t/c\n"
				     "CMD [\"x\"]"); // no newline at the end

	cr_assert(d.n == 6 && d.stages == 2);
	cr_expect(d.instr[0].stage == 0 && d.instr[0].line == 2);
	step(&d, 1, 1, 4, "FROM x:$TAG AS a");
	step(&d, 1, 2, 5, "run echo a &&    echo b   c");
	cr_expect_str_eq(d.instr[2].word, "RUN");
	cr_expect_str_eq(d.instr[2].args, "echo a &&    echo b   c");
	step(&d, 2, 1, 10, "FROM y");
	step(&d, 2, 2, 11, "COPY --from=a /b \t/c");
	step(&d, 0, 3, 13, "CMD [\"x\"]");
	cr_expect(dockerfile_step(&d, 1, 3) == NULL);
	cr_expect(dockerfile_step(&d, 3, 1) == NULL);
	cr_expect(dockerfile_last(&d, "COPY")->line == 11);
	cr_expect(dockerfile_last(&d, "RUN") == NULL); // another stage's
	dockerfile_free(&d);
	dockerfile_free(&d);
}

Test(dockerfile, plain)
{
	struct dockerfile d = parsed("# syntax=docker/dockerfile:1\n"
				     "# escape=`\n"
				     "FROM x\n"
				     "# gone\n"
				     "RUN a `\n"
				     "  \\b\n");
	char *text = dockerfile_plain(&d);

	cr_expect_str_eq(text, "# escape=`\nFROM x\nRUN a   \\b\n");
	free(text);
	dockerfile_free(&d);
	d = parsed("FROM x\n# escape=`\nRUN a `\n"); // too late for a directive
	text = dockerfile_plain(&d);
	cr_expect_str_eq(text, "# escape=\\\nFROM x\nRUN a `\n");
	free(text);
	dockerfile_free(&d);
}

Test(dockerfile, ports)
{
	uint16_t p[DOCKERFILE_PORTS_MAX];
	struct dockerfile d = parsed("FROM x\nEXPOSE 1\nFROM y\n"
				     "EXPOSE 9000/tcp  53/udp\t5000\n"
				     "EXPOSE $P 9000 8000-8010 65535/TCP\n");

	cr_assert(dockerfile_ports(&d, p) == 4);
	cr_expect(p[0] == 9000 && p[1] == 5000 && p[2] == 8000 &&
		  p[3] == 65535);
	dockerfile_free(&d);
}

Test(dockerfile, refusals)
{
	refused("", 0, "the Dockerfile is empty");
	refused("# only\n\n  # comments\n", 0, "empty");
	refused("\nRUN x\n", 2, "first instruction must be FROM");
	refused("ARG A\n", 1, "there is no FROM");
	refused("FROM x\n\nINSTALL y\n", 3, "unknown instruction INSTALL");
	refused("FROM x\nRUNN y\n", 2, "unknown instruction RUNN");
	refused("FROM x\nAVERYLONGWORDTHATISNOINSTRUCTION y\n", 2, "unknown");
	refused("FROM\n", 1, "argument is missing after FROM");
	refused("FROM x\nWORKDIR  \\\n\n", 2, "missing after WORKDIR");
	refused("FROM x\nEXPOSE 80 70000\n", 2, "not 70000");
	refused("FROM x\nEXPOSE 0\n", 2, "not 0");
	refused("FROM x\nEXPOSE 80/sctp\n", 2, "not 80/sctp");
	refused("FROM x\nEXPOSE 80-\n", 2, "not 80-");
	refused("FROM x\nRUN <<EOF\nx\nEOF\n", 2, "heredocs");
	refused("FROM x\nCOPY <<-'EOF' /y\nx\nEOF\n", 2, "heredocs");
	refused("FROM x\nRUN a \\ \\\n# end\n", 2, "no line follows");
	refused("FROM x\n \\\n\n\\\n", 2, "nothing but a line's end");
	refused("# escape=x\nFROM x\n", 1, "escape must be");
}

Test(dockerfile, not_heredocs)
{
	struct dockerfile d =
	    parsed("FROM x\nRUN cat <<<word\nRUN echo $((1<<2))"
		   "\nENV A=<<B\n");

	cr_expect(d.n == 4);
	dockerfile_free(&d);
}

Test(dockerfile, limits)
{
	static const char zero[] = "FROM x\nRUN a\0b\n";
	size_t len = DOCKERFILE_MAX + 1, n = 0;
	char *big = malloc(len);
	struct dockerfile d;
	struct err e = ERR_INIT;
	unsigned line;

	cr_expect(dockerfile_parse(&d, zero, sizeof(zero) - 1, &line, &e) ==
		      -EINVAL &&
		  line == 2 && strstr(e.msg, "zero byte"));
	memset(big, '\n', len);
	cr_expect(dockerfile_parse(&d, big, len, &line, &e) == -EFBIG);
	memcpy(big, "FROM x\n", 7);
	for (n = 7; n < 7 + 6 * DOCKERFILE_INSTRS_MAX; n += 6)
		memcpy(big + n, "RUN x\n", 6);
	cr_expect(dockerfile_parse(&d, big, n, &line, &e) == -EINVAL &&
		  line == DOCKERFILE_INSTRS_MAX + 1);
	cr_expect(dockerfile_parse(&d, big, n - 6, &line, &e) == 0 &&
		  d.n == DOCKERFILE_INSTRS_MAX);
	dockerfile_free(&d);
	free(big);
}
