"""Dockerfiles that must build and answer, and some that must not build: what
tests/guest/test_dockerfiles*.py and tests/conformance/test_broken.py have in
common."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..",
                                "engine"))
from image_bases import BUSYBOX as BOX  # noqa: E402
from image_bases import NODE, PYTHON, TCC  # noqa: E402

# Serves ./www on a port, with what it is asked for by a program of its own.
HTTPD = '"/bin/busybox", "httpd", "-f", "-p"'
TELL = ("#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n"
        "echo uid=$(id -u) gid=$(id -g) $GREETING\n"
        "cat /told 2>/dev/null\n"
        "echo kept >/data/file 2>/dev/null && cat /data/file\n"
        "tr '\\0' ' ' </proc/$PPID/cmdline\n"
        "readlink /proc/$PPID/cwd\n")
SITE = {"www/index.html": "a page\n", "www/cgi-bin/tell": TELL}
COPY = "COPY www /srv/www\nRUN chmod 755 /srv/www/cgi-bin/tell\n"

C_SERVER = r"""
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
	static const char text[] =
	    "HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nfrom C\n";
	struct sockaddr_in a = {.sin_family = AF_INET};
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1, c;
	char ask[4096];

	a.sin_port = htons(7000);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(s, (void *)&a, sizeof(a)) || listen(s, 5))
		return 1;
	while ((c = accept(s, 0, 0)) >= 0) {
		if (read(c, ask, sizeof(ask)) > 0)
			write(c, text, strlen(text));
		close(c);
	}
	return 1;
}
"""

PYTHON_APP = """
import os
import socket

s = socket.create_server(("0.0.0.0", 5000))
while True:
    c, _ = s.accept()
    c.recv(4096)
    text = f"Hello, World! {os.getuid()} {os.getcwd()}\\n"
    c.sendall(f"HTTP/1.0 200 OK\\r\\nContent-Length: {len(text)}\\r\\n\\r\\n{text}"
              .encode())
    c.close()
"""

NODE_APP = """
const http = require('http');
http.createServer((q, r) => r.end(
    `node ${process.version.split('.')[0]} ${process.env.GREETING}\\n`))
    .listen(3000, '0.0.0.0');
"""

# name: (Dockerfile, other files, port, path, what the answer has)
SMALL = {
    "multi-stage": (
        f"FROM {BOX} AS build\nRUN mkdir /out && echo built >/out/index.html\n"
        f"FROM {BOX} AS unused\nRUN false\n"
        f"FROM {BOX}\nCOPY --from=build /out /srv/www\nEXPOSE 8080\n"
        f'CMD [{HTTPD}, "8080", "-h", "/srv/www"]\n',
        {}, 8080, "/", ["built"]),
    "arg": (
        f"ARG TAG=1\nFROM localhost/busybox:$TAG\nARG WHO=nobody\nARG EMPTY\n"
        'ENV GREETING="hello $WHO"\nRUN echo "told $WHO [$EMPTY]" >/told\n' +
        COPY + f'EXPOSE 8080\nCMD [{HTTPD}, "8080", "-h", "/srv/www"]\n',
        SITE, 8080, "/cgi-bin/tell", ["hello nobody", "told nobody []"]),
    "user": (
        f"FROM {BOX}\nRUN echo worker:x:1234:1234:w:/:/bin/sh >>/etc/passwd "
        "&& echo worker:x:1234: >>/etc/group\n" + COPY +
        f'USER worker\nEXPOSE 8080\nCMD [{HTTPD}, "8080", "-h", "/srv/www"]\n',
        SITE, 8080, "/cgi-bin/tell", ["uid=1234 gid=1234"]),
    "entrypoint": (
        f"FROM {BOX}\n" + COPY + "WORKDIR /srv\nWORKDIR www\nEXPOSE 8081\n"
        f'ENTRYPOINT [{HTTPD}, "8081"]\nCMD ["-h", "."]\n',
        SITE, 8081, "/cgi-bin/tell", ["httpd -f -p 8081 -h ."]),
    "shell-form": (
        f"FROM {BOX}\n" + COPY + 'SHELL ["/bin/busybox", "sh", "-c"]\n'
        "ENV PORT=8082\nCMD [\"never\"]\nWORKDIR /srv/www\nEXPOSE 8082\n"
        "HEALTHCHECK --interval=5s --retries=2 "
        "CMD wget -q -O - localhost:8082/ || exit 1\nSTOPSIGNAL SIGINT\n"
        "ENTRYPOINT exec httpd -f -p $PORT -h .\n",
        SITE, 8082, "/", ["a page"]),
    "volume": (
        f"FROM {BOX}\n" + COPY + 'VOLUME /data\nVOLUME ["/var/lib/thing"]\n'
        f'EXPOSE 8080\nCMD [{HTTPD}, "8080", "-h", "/srv/www"]\n',
        SITE, 8080, "/cgi-bin/tell", ["kept"]),
    "non-root": (
        f"FROM {BOX}\n" + COPY + "USER 4000:4001\nEXPOSE 8080\n"
        f'CMD [{HTTPD}, "8080", "-h", "/srv/www"]\n',
        SITE, 8080, "/cgi-bin/tell", ["uid=4000 gid=4001"]),
}
LARGE = {
    "python": (
        f"FROM {PYTHON}\nWORKDIR /app\nCOPY app.py .\nEXPOSE 5000\nUSER 33\n"
        'CMD ["python3", "app.py"]\n',
        {"app.py": PYTHON_APP}, 5000, "/", ["Hello, World! 33 /app"]),
    "node": (
        f"FROM {NODE}\nCOPY server.js /srv/\nENV GREETING=hi\nEXPOSE 3000\n"
        'CMD ["node", "/srv/server.js"]\n',
        {"server.js": NODE_APP}, 3000, "/", ["node v", "hi"]),
    "c": (
        f"FROM {TCC} AS build\nCOPY server.c /src/\n"
        "RUN tcc -o /server /src/server.c\n"
        f"FROM {BOX}\nCOPY --from=build /server /server\n"
        "COPY --from=build /lib/x86_64-linux-gnu/libc.so.6 "
        "/lib/x86_64-linux-gnu/\n"
        "COPY --from=build /lib64/ld-linux-x86-64.so.2 /lib64/\n"
        'EXPOSE 7000\nENTRYPOINT ["/server"]\n',
        {"server.c": C_SERVER}, 7000, "/", ["from C"]),
}

# name: (Dockerfile, line, what the message has)
BROKEN = {
    "a step that fails": (
        f"FROM {BOX}\nRUN true\n\nRUN echo one && \\\n  sleep 0.5; exit 37\n",
        4, "exit status 37"),
    "a program that is not there": (
        f"FROM {BOX}\nRUN npm install || {{ sleep 0.5; exit 127; }}\n", 2,
        "exit status 127"),
    "an unknown instruction": (
        f"FROM {BOX}\n\n# x\nINSTALL me\n", 4, "unknown instruction INSTALL"),
    "a file that is not there": (
        f"FROM {BOX}\nCOPY nothing /x\nCMD x\n", 2, "nothing"),
    "a base image that is not there": (
        "FROM registry.example/none:1\nCMD x\n", 1, "scripts/base-image"),
    "no FROM": ("RUN true\nCMD x\n", 1, "FROM"),
    # (Not a name that begins an image's ID, which buildah takes for that image.)
    "a stage that is not there": (
        f"FROM {BOX} AS a\nFROM {BOX}\nCOPY --from=other /x /y\nCMD x\n", 3,
        "no stage or image"),
    "an unknown user": (f"FROM {BOX}\nCMD x\nUSER ghost\n", 3, "no such user"),
    "nothing to start": (f"FROM {BOX}\nRUN true\n", 1,
                         "neither ENTRYPOINT nor CMD"),
    "a port that is none": (f"FROM {BOX}\nEXPOSE 80 http\nCMD x\n", 2,
                            "EXPOSE takes ports"),
    "a path out of the context": (
        f"FROM {BOX}\nCOPY ../../etc/shadow /x\nCMD x\n", 2, "escaping"),
    "the network": (
        f"FROM {BOX}\nRUN nc -w 5 192.0.2.1 80 </dev/null || "
        "{ sleep 0.5; exit 1; }\nCMD x\n", 2, "etwork is unreachable"),
}
