#include "pgc_test.h"
