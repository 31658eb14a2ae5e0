#include "addr.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static bool parse_port(const char *text, in_port_t *out)
{
	size_t len = strlen(text);
	unsigned long n = strtoul(text, NULL, 10);

	*out = htons((uint16_t)n);
	return len > 0 && len < 6 && strspn(text, "0123456789") == len &&
	       n <= 65535;
}

int addr_parse(const char *text, struct sockaddr_storage *sa)
{
	struct sockaddr_in6 *six = (void *)sa;
	struct sockaddr_in *four = (void *)sa;
	const char *colon = strrchr(text, ':');
	const char *port = colon ? colon + 1 : text;
	char host[ADDR_TEXT] = "127.0.0.1";
	size_t n = colon ? (size_t)(colon - text) : 0;
	bool good;

	memset(sa, 0, sizeof(*sa));
	if (n >= sizeof(host) || (colon && !n))
		return -EINVAL;
	if (n && strncmp(text, "localhost:", 10) != 0) {
		memcpy(host, text, n);
		host[n] = '\0';
	}
	if (host[0] == '[' && host[n - 1] == ']') {
		host[n - 1] = '\0';
		six->sin6_family = AF_INET6;
		good = inet_pton(AF_INET6, host + 1, &six->sin6_addr) == 1 &&
		       parse_port(port, &six->sin6_port);
		return good ? (int)sizeof(*six) : -EINVAL;
	}
	four->sin_family = AF_INET;
	good = inet_pton(AF_INET, host, &four->sin_addr) == 1 &&
	       parse_port(port, &four->sin_port);
	return good ? (int)sizeof(*four) : -EINVAL;
}

bool addr_is_loopback(const struct sockaddr_storage *sa)
{
	const struct sockaddr_in6 *six = (const void *)sa;
	const struct sockaddr_in *four = (const void *)sa;

	if (sa->ss_family == AF_INET6)
		return IN6_IS_ADDR_LOOPBACK(&six->sin6_addr);
	return sa->ss_family == AF_INET &&
	       ntohl(four->sin_addr.s_addr) >> 24 == 127;
}

unsigned addr_bound(int fd, char out[ADDR_TEXT])
{
	struct sockaddr_storage sa = {.ss_family = AF_UNSPEC};
	const struct sockaddr_in6 *six = (const void *)&sa;
	const struct sockaddr_in *four = (const void *)&sa;
	socklen_t len = sizeof(sa);
	char host[INET6_ADDRSTRLEN] = "";
	unsigned port;
	bool v6;

	if (out)
		out[0] = '\0';
	if (getsockname(fd, (struct sockaddr *)&sa, &len))
		return 0;
	v6 = sa.ss_family == AF_INET6;
	port = ntohs(v6 ? six->sin6_port : four->sin_port);
	inet_ntop(sa.ss_family,
		  v6 ? (const void *)&six->sin6_addr : &four->sin_addr, host,
		  sizeof(host));
	if (out)
		snprintf(out, ADDR_TEXT, v6 ? "[%s]:%u" : "%s:%u", host, port);
	return port;
}
