// ARNs of images: this thawd's region in them, and no account but 000000000000.
#ifndef THAW_ENG_ARN_H
#define THAW_ENG_ARN_H

#include "base.h"

#define ARN_REGION "us-east-1" // without --region
enum { ARN_REGION_MAX = 31, ARN_PREFIX_MAX = 64 + ARN_REGION_MAX };

// Once, before the loop runs. -EINVAL: no AWS region is named so.
int eng_arn_set_region(const char *region, struct err *e);
const char *eng_arn_region(void);
// An image's ARN without its name.
const char *eng_arn_prefix(void);

#endif
