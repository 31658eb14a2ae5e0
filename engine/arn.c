#include "arn.h"
#include "shape.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ARN(region) "arn:aws:lambda:" region ":000000000000:microvm-image:"
// As in the ARNs that the operations on tags take.
#define REGION "(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\\d{1}"

static char region_name[ARN_REGION_MAX + 1] = ARN_REGION;
static char prefix[ARN_PREFIX_MAX + 1] = ARN(ARN_REGION);

int eng_arn_set_region(const char *region, struct err *e)
{
	if (strlen(region) > ARN_REGION_MAX || !shape_match(REGION, region))
		return err_set(e, -EINVAL,
			       "--region takes a region as AWS names them "
			       "(us-east-1), not \"%.40s\"",
			       region);
	strcpy(region_name, region);
	snprintf(prefix, sizeof(prefix), ARN("%s"), region);
	return 0;
}

const char *eng_arn_region(void)
{
	return region_name;
}

const char *eng_arn_prefix(void)
{
	return prefix;
}
