// What this host lacks, and what to do about it.
#ifndef THAW_ENG_DOCTOR_H
#define THAW_ENG_DOCTOR_H

#include "config.h"

#include <jansson.h>

// {"stock_kernel": bool, "ok": bool, "checks": [{name, status: ok|warn|fail,
// detail, remedy}]}. Takes about 0.2 s; any thread.
json_t *eng_doctor(const struct eng_config *cfg);
// Runs it for the command line: prints and returns the exit status.
int eng_doctor_main(const struct eng_config *cfg);

#endif
