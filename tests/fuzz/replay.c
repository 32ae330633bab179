/* Runs the files of directories as inputs of a fuzz target, without a fuzzer. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"

static unsigned replay(const char *directory, const char *name)
{
	uint8_t bytes[1 << 16];
	char path[512];
	size_t size;
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = name[0] == '.' ? NULL : fopen(path, "rb");
	if (!file)
		return 0;
	size = fread(bytes, 1, sizeof(bytes), file);
	fclose(file);
	LLVMFuzzerTestOneInput(bytes, size);
	return 1;
}

int main(int argc, char **argv)
{
	unsigned inputs = 0;

	for (int i = 1; i < argc; i++) {
		DIR *directory = opendir(argv[i]);
		struct dirent *entry;

		if (!directory) {
			perror(argv[i]);
			return 1;
		}
		while ((entry = readdir(directory)) != NULL)
			inputs += replay(argv[i], entry->d_name);
		closedir(directory);
	}
	printf("%u inputs\n", inputs);
	return inputs == 0;
}
