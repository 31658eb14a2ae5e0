// Runs a fuzz target over files and folders of inputs, and over each input with
// every byte dropped or altered: so a corpus finds more than itself in any build.
// A target that has states to reach (fuzz.h) has reached them by the inputs alone.
#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

static size_t inputs, runs;
static bool vary; // the second time

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
	size_t each = sizeof(to) + 2;
	size_t step = &fuzz_around ? 1 + n * each / fuzz_around : 1;

	for (size_t i = 0; i < n; i += step) {
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
	if (vary) {
		around(data, n);
	} else {
		inputs++;
		run(data, n);
	}
}

static int all(int argc, char **argv)
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
	return 0;
}

static bool all_reached(void)
{
	bool ok = true;

	for (struct fuzz_state *s = fuzz_states; s && s->name; s++) {
		if (s->seen)
			continue;
		printf("the corpus does not reach: %s\n", s->name);
		ok = false;
	}
	return ok;
}

int main(int argc, char **argv)
{
	bool ok;

	if (all(argc, argv))
		return 1;
	ok = all_reached();
	vary = true;
	if (all(argc, argv))
		return 1;
	printf("%s: %zu inputs, %zu runs\n", argv[0], inputs, runs);
	return ok ? 0 : 1;
}
