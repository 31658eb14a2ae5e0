// Runs a fuzz target over files and folders of inputs, and over each input with
// every byte dropped or altered: so a corpus finds more than itself in any build.
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static size_t inputs, runs;

static void run(const uint8_t *data, size_t n)
{
	uint8_t *copy = malloc(n ? n : 1); // so that ASan sees its end

	memcpy(copy, data, n);
	LLVMFuzzerTestOneInput(copy, n);
	free(copy);
	runs++;
}

static void around(uint8_t *data, size_t n)
{
	static const uint8_t to[] = {0, '\n', '=', '%', 0xff};

	run(data, n);
	for (size_t i = 0; i < n; i++) {
		uint8_t was = data[i];

		run(data, i);
		for (size_t k = 0; k < sizeof(to); k++) {
			data[i] = to[k];
			run(data, n);
		}
		data[i] = was ^ 1;
		run(data, n);
		data[i] = was;
	}
}

static void file(const char *path)
{
	static uint8_t data[1 << 20];
	FILE *f = fopen(path, "rb");
	size_t n;

	if (!f) {
		perror(path);
		exit(1);
	}
	n = fread(data, 1, sizeof(data), f);
	fclose(f);
	inputs++;
	around(data, n);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		struct dirent **list;
		struct stat st;
		char path[4096];
		int n;

		if (stat(argv[i], &st)) {
			perror(argv[i]);
			return 1;
		}
		if (!S_ISDIR(st.st_mode)) {
			file(argv[i]);
			continue;
		}
		n = scandir(argv[i], &list, NULL, alphasort);
		for (int k = 0; k < n; k++) {
			snprintf(path, sizeof(path), "%s/%s", argv[i],
				 list[k]->d_name);
			if (list[k]->d_name[0] != '.')
				file(path);
			free(list[k]);
		}
		if (n >= 0)
			free(list);
	}
	printf("%s: %zu inputs, %zu runs\n", argv[0], inputs, runs);
	return 0;
}
