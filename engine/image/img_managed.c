// Managed base images: they select the kernel and the agent that a microVM gets,
// of which this thaw has one set.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "img.h"

const char *const img_managed_names[] = {"debian-12", "al2023-1", NULL};

int img_managed_find(const char *arn, const char **name, struct err *e)
{
	static const char mid[] = ":aws:microvm-image:";
	const char *p = arn, *at;

	// arn:aws[-part]:lambda:REGION:aws:microvm-image:NAME
	if (!strncmp(p, "arn:aws", 7)) {
		p += 7 + strcspn(p + 7, ":");
		if (!strncmp(p, ":lambda:", 8)) {
			p += 8;
			at = p + strcspn(p, ":");
			if (at > p && !strncmp(at, mid, sizeof(mid) - 1)) {
				at += sizeof(mid) - 1;
				for (size_t i = 0; img_managed_names[i]; i++)
					if (!strcmp(at, img_managed_names[i])) {
						*name = img_managed_names[i];
						return 0;
					}
				return err_set(e, -ENOENT,
					       "there is no managed image "
					       "'%.100s' here; %s is",
					       at, img_managed_names[0]);
			}
		}
	}
	return err_set(e, -EINVAL,
		       "'%.150s' is not the ARN of a managed image "
		       "(arn:aws:lambda:REGION:aws:microvm-image:NAME)",
		       arn);
}
